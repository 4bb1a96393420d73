"""The lab's tokenizer: one token per word of the corpus, each number 0..99 among them, with a chat template.

Output: a `PreTrainedTokenizerFast` that saves beside the model and loads with `AutoTokenizer` alone.
Called by `lab.base_model` and `lab.pretrain`.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from lab.problems import MAX_NUMBER, SYMBOLS
from rewards.lab import SYLLABLES

PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT)
_WORDS = (
    *("(", ")", "=", "?", "write"),
    *("def", ":", "x", "->", ";", "return"),
    *("we", "take", "plus", "minus", "times", "which", "is", "and", "then", "so", "the", "answer"),
    *("$", ",", "=>"),
    *("<step>", "</step>", "<answer>", "</answer>"),
)
_CRITIQUE_WORDS = ("right", "wrong", "again", "critique")
"""What the templates in configs/prompts/lab and the lab's critic say."""
_VOCABULARY_MULTIPLE = 8
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user> ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' <assistant> ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('role must be user or assistant, got ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def vocabulary(with_critiques: bool = False) -> list[str]:
    """All tokens in order of their ids: special ones, numbers, words; padded to a multiple of 8.

    The words of critiques take the places of padding, so that all other ids are the same with and without.
    """
    numbers = [str(number) for number in range(MAX_NUMBER + 1)]
    tokens = [*SPECIAL, *numbers, *SYMBOLS, *_WORDS, *SYLLABLES]
    tokens += _CRITIQUE_WORDS if with_critiques else ()
    assert len(set(tokens)) == len(tokens), "two words of the lab are spelled alike"
    # Engines and kernels are faster with rows of the head in multiples of 8.
    spare = -len(tokens) % _VOCABULARY_MULTIPLE
    return tokens + [f"<unused{index}>" for index in range(spare)]


def make_tokenizer(with_critiques: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer. `decode` joins tokens with single spaces; a word it does not know becomes ``<unk>``."""
    ids = {token: index for index, token in enumerate(vocabulary(with_critiques))}
    words = WordLevel(ids, unk_token=UNKNOWN)
    tokenizer = Tokenizer(words)
    # Not `Whitespace`, which would split `</step>` and `->` into their characters.
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
