"""Trains the text tokenizer of the embedded language model on the texts of a corpus."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import soundfile
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.formats.released_layout import IndexItem, ReleasedLayout
from datamodules.synthetic.dialogues import reply_words
from lightning_modules.number_checks import require_at_least

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
AUDIO = "<|audio|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# A word or a number with the space before it; a spelled letter with its comma, because spelling would otherwise need
# twice the tokens of other speech; anything else by itself.
_PIECES = r" ?[A-Z],(?= )| ?[A-Za-z']+| ?[0-9]+| ?[^\sA-Za-z0-9']+|\s"


class TextTokenizerTrainer:
    """A job that trains a byte-level BPE: a frequent word is one token, and any text survives encode and decode.

    Args:
        root: The folder of the corpus.
        set_name: The folder of the set inside `root`.
        train_index: The JSON file whose replies, and transcripts of queries if there are any, are learned from.
        vocab_size: The most tokens there may be, at least 300, of which 256 are bytes.
        min_frequency: How often a pair must occur to become a token.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        root: str,
        set_name: str = "spoken_examples",
        train_index: str = "train.json",
        vocab_size: int = 2048,
        min_frequency: int = 20,
    ) -> None:
        require_at_least(300, vocab_size=vocab_size)
        require_at_least(1, min_frequency=min_frequency)
        self.root = Path(root)
        self.set_name = set_name
        self.train_index = train_index
        self.vocab_size = vocab_size
        self.min_frequency = min_frequency

    def run(self, output_dir: Path | str) -> dict[str, float]:
        """Write `<output_dir>/tokenizer`, which `AutoTokenizer.from_pretrained` reads.

        Args:
            output_dir: The run directory.

        Returns:
            The size of the vocabulary, tokens per reply, the share of distinct words that are one token and, where the
            corpus holds reply speech, text tokens per second of it.

        Raises:
            FileNotFoundError: If there is no such corpus.
            UserError: If its index does not have the released layout.
        """
        items = ReleasedLayout(self.root / self.set_name / self.train_index, self.root, fields=()).items
        replies = [item.reply_text for item in items]
        queries = [" " + item.transcript for item in items if item.transcript]
        tokenizer = train_tokenizer(replies + queries, self.vocab_size, self.min_frequency)
        tokenizer.save_pretrained(Path(output_dir) / "tokenizer")
        return _metrics(tokenizer, items)


def train_tokenizer(texts: Sequence[str], vocab_size: int, min_frequency: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with ChatML roles and an audio placeholder.

    Args:
        texts: What to learn from.
        vocab_size: The most tokens there may be.
        min_frequency: How often a pair must occur to become a token.

    Returns:
        A tokenizer whose `decode(encode(text))` is `text` for every text; `<|im_end|>` ends a turn and
        `<|endoftext|>` pads.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, AUDIO],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, AUDIO],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _metrics(tokenizer: PreTrainedTokenizerFast, items: list[IndexItem]) -> dict[str, float]:
    counts = [len(tokenizer.encode(item.reply_text)) for item in items]
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    pieces = {piece for item in items for piece, _ in split(item.reply_text)}
    metrics = {
        "vocab_size": len(tokenizer),
        "reply_tokens_mean": statistics.fmean(counts),
        "reply_tokens_max": max(counts),
        "lexicon_words": len({word for item in items for word in reply_words(item.reply_text)}),
        "single_token_share": len(pieces & tokenizer.get_vocab().keys()) / len(pieces),
    }
    seconds = [soundfile.info(item.reply).duration for item in items if item.reply is not None and item.reply.is_file()]
    if len(seconds) == len(items):
        rates = [count / duration for count, duration in zip(counts, seconds, strict=True)]
        metrics |= {"text_tokens_per_s_mean": statistics.fmean(rates), "text_tokens_per_s_max": max(rates)}
    return metrics
