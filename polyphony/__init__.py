"""The command line; each verb is imported only when it is used."""
