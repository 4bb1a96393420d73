"""Scripts that run inside the sandbox. They import nothing of this project but each other."""
