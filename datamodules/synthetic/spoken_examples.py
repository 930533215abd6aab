"""Makes the embedded corpus: dialogues spoken by eSpeak NG, in the on-disk layout of the released VocalNet sets."""

import functools
import io
import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from datamodules.formats.atomic_files import remove_partial_files, replacing, write_json
from datamodules.formats.released_items import read_items
from datamodules.synthetic import lexicon
from datamodules.synthetic.dialogues import make_dialogues, reply_words
from datamodules.synthetic.espeak import PITCHES, RATES_WPM, SAMPLE_RATE, EspeakSynthesizer, Voice
from datamodules.synthetic.expressive_speech import ExpressiveSpeech, Phrase, mean_tempo
from datamodules.synthetic.intents import Dialogue
from datamodules.workers import map_unordered
from lightning_modules.errors import UserError
from lightning_modules.number_checks import require_at_least

SET_NAME = "spoken_examples"
SPLITS = ("train", "validation", "test")

# Few enough that a killed run loses little, many enough that loading the library again for each chunk costs nothing.
_CHUNK = 20

_synthesizer: EspeakSynthesizer | None = None


@dataclass(frozen=True)
class _Task:
    """One example to speak: its texts, its voices, the phrases of an expressive reply and the names of its files."""

    id: str
    dialogue: Dialogue
    query_voice: Voice
    reply_voice: Voice
    query_file: str
    reply_file: str
    units_file: str
    phrases: tuple[Phrase, ...] = ()


class SpokenExamplesMaker:
    """A job that writes a corpus of spoken dialogues whose splits are disjoint by reply text.

    It may be killed and run again: chunks of examples whose files all exist are kept, the JSON lists are written last.
    The files depend on the arguments only, not on the number of workers or on restarts.

    Args:
        num_train: Dialogues in `train.json`.
        num_validation: Dialogues in `validation.json`.
        num_test: Dialogues in `test.json`.
        max_train_examples: Only the first ones of those of `train.json` are spoken, so that a part has the dialogues of
            the whole; all if None.
        seed: Draws the dialogues and the voices of the queries.
        num_workers: Processes that speak; 0 speaks in this process.
        codec_name: Names the folder that the `units` keys point into, `<codec_name>_tokens`.
        reply_voice: The voice of all replies; the default if None.
        expressive: From what ranges each phrase of a reply draws its manner of speaking, by seed and dialogue; in the
            lists `reply_tempo` is the drawn speed as a share of the voice's. None speaks all replies in one manner.
        query_languages: Languages of the queries, as eSpeak names them; a language named twice is drawn twice as often.
        query_variants: Voices of the queries, as eSpeak names its variants.
        query_rates_wpm: Lowest and highest speed of the queries, in words per minute.
        query_pitches: Lowest and highest base pitch of the queries, 0 to 99.
        askers_per_dialogue: Voices that ask for each training dialogue, one example each; they share its spoken reply.
        training_languages: Languages of the training queries; `query_languages` if None.
        training_variants: Voices of the training queries; `query_variants` if None.
        names: Who is asked about: "old" stands for the quickstart's 20 names, "new" for 100 others, anything else is
            itself a name.
        exclude: Corpora of this kind whose replies this one must not have, in none of its splits.

    Raises:
        UserError: If a number is out of range, a name is no word with a capital, or there is no name, language or
            variant to draw from.
    """

    def __init__(
        self,
        num_train: int = 7200,
        num_validation: int = 200,
        num_test: int = 300,
        max_train_examples: int | None = None,
        seed: int = 0,
        num_workers: int = 2,
        codec_name: str = "fsq1000",
        reply_voice: Voice | None = None,
        expressive: ExpressiveSpeech | None = None,
        query_languages: tuple[str, ...] | list[str] = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland"),
        query_variants: tuple[str, ...] | list[str] = (
            *("m1", "m2", "m3", "m4", "m5", "m6", "m7"),
            *("f1", "f2", "f3", "f4", "f5"),
        ),
        query_rates_wpm: tuple[int, int] | list[int] = (140, 200),
        query_pitches: tuple[int, int] | list[int] = (30, 70),
        askers_per_dialogue: int = 1,
        training_languages: Sequence[str] | None = None,
        training_variants: Sequence[str] | None = None,
        names: Sequence[str] = ("old",),
        exclude: Sequence[str] = (),
    ) -> None:
        require_at_least(1, num_train=num_train, num_validation=num_validation, num_test=num_test)
        require_at_least(1, max_train_examples=max_train_examples, askers_per_dialogue=askers_per_dialogue)
        require_at_least(0, seed=seed, num_workers=num_workers)
        _require_range("query_rates_wpm", query_rates_wpm, *RATES_WPM)
        _require_range("query_pitches", query_pitches, *PITCHES)
        self.languages = _by_split(query_languages, training_languages)
        self.variants = _by_split(query_variants, training_variants)
        for split, languages in self.languages.items():
            if not languages or not self.variants[split]:
                raise UserError(
                    f"queries of {split}: languages={list(languages)}, variants={list(self.variants[split])}: name at "
                    "least one of each; the variant '' is the language's own voice"
                )
        if not codec_name or "/" in codec_name:
            raise UserError(f"codec_name is {codec_name!r}; give a name for a folder, without a slash")
        self.num_examples = {"train": num_train, "validation": num_validation, "test": num_test}
        self.max_train_examples = max_train_examples
        self.seed = seed
        self.num_workers = num_workers
        self.codec_name = codec_name
        self.reply_voice = reply_voice or Voice()
        self.expressive = expressive
        if expressive is not None:
            rates = [round(self.reply_voice.rate_wpm * percent / 100) for percent in expressive.tempo_percent]
            _require_range("words per minute at the lowest and highest tempo_percent", rates, *RATES_WPM)
        self.query_rates_wpm = tuple(query_rates_wpm)
        self.query_pitches = tuple(query_pitches)
        self.askers_per_dialogue = askers_per_dialogue
        self.names = lexicon.find_names(names)
        self.exclude = tuple(exclude)

    def run(self, output_dir: Path | str) -> dict[str, float]:
        """Write `<output_dir>/spoken_examples/{train,validation,test}.json` and the wav files.

        Args:
            output_dir: The run directory.

        Returns:
            Counts, hours of audio, reply lengths in seconds and the statistics of the reply lexicon.

        Raises:
            UserError: If more dialogues are asked for than the templates hold, or eSpeak does not know a voice.
            FileNotFoundError: If a corpus to exclude is not there.
        """
        root = Path(output_dir)
        splits = self._plan()
        tasks = [task for split in splits.values() for task in split]
        for folder in (root / SET_NAME / "audios", root / SET_NAME / "replies"):
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(folder)
        is_continued = self._is_continued(root, tasks)
        size = _CHUNK * self.askers_per_dialogue  # those who share a reply are in one chunk
        chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        durations: dict[str, tuple[float, float]] = {}
        speak = functools.partial(_speak_chunk, root, keep_existing=is_continued)
        with tqdm(total=len(tasks), desc="speaking", unit="dialogue") as progress:
            for _, done in map_unordered(speak, chunks, self.num_workers):
                durations.update(done)
                progress.update(len(done))
        for split, members in splits.items():
            write_json(root / SET_NAME / f"{split}.json", [self._item(task) for task in members])
        return self._metrics(splits, durations)

    def _plan(self) -> dict[str, list[_Task]]:
        """List the examples of each split; a pure function of the arguments and of the corpora to exclude."""
        total = sum(self.num_examples.values())
        dialogues = iter(make_dialogues(total, self.seed, self.names, self._excluded_replies()))
        drawn = {split: list(itertools.islice(dialogues, count)) for split, count in self.num_examples.items()}
        drawn["train"] = drawn["train"][: self.max_train_examples]
        return {
            split: [
                self._task(split, f"{split}_{index:05d}", dialogue, asker)
                for index, dialogue in enumerate(members)
                for asker in range(self.askers_per_dialogue if split == "train" else 1)
            ]
            for split, members in drawn.items()
        }

    def _excluded_replies(self) -> set[str]:
        indices = [Path(corpus) / SET_NAME / f"{split}.json" for corpus in self.exclude for split in SPLITS]
        return {item.reply for index in indices for item in read_items(index)}

    def _task(self, split: str, reply: str, dialogue: Dialogue, asker: int) -> _Task:
        name = f"{reply}_{asker:02d}" if asker else reply
        generator = random.Random(f"{self.seed}/{name}")
        voice = Voice(
            language=generator.choice(self.languages[split]),
            variant=generator.choice(self.variants[split]),
            rate_wpm=generator.randint(*self.query_rates_wpm),
            pitch=generator.randint(*self.query_pitches),
        )
        query_file, reply_file = f"{SET_NAME}/audios/{name}.wav", f"{SET_NAME}/replies/{reply}.wav"
        units_file = f"{SET_NAME}/{self.codec_name}_tokens/{reply}.npy"
        phrases: tuple[Phrase, ...] = ()
        if self.expressive is not None:
            phrases = self.expressive.draw(dialogue.reply, random.Random(f"{self.seed}/{reply}/reply"))
        return _Task(name, dialogue, voice, self.reply_voice, query_file, reply_file, units_file, phrases)

    def _item(self, task: _Task) -> dict:
        tempo = {"reply_tempo": round(mean_tempo(task.phrases), 4)} if task.phrases else {}
        return {
            "id": task.id,
            "speech": task.query_file,
            "conversations": [
                {"from": "human", "value": "<speech>"},
                {"from": "gpt", "value": task.dialogue.reply},
            ],
            "units": task.units_file,
            "transcript": task.dialogue.query,
            "reply_speech": task.reply_file,
            **tempo,
        }

    def _is_continued(self, root: Path, tasks: list[_Task]) -> bool:
        """Tell whether the files found here belong to this very plan; write the plan down for the next start."""
        path = root / SET_NAME / "plan.json"
        plan = json.loads(json.dumps([asdict(task) for task in tasks]))  # tuples become lists, as in the file
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) == plan:
            return True
        for split in SPLITS:
            (root / SET_NAME / f"{split}.json").unlink(missing_ok=True)
        for stale in (root / SET_NAME).glob("*/*.wav"):
            stale.unlink()
        write_json(path, plan)
        return False

    def _metrics(self, splits: dict[str, list[_Task]], durations: dict[str, tuple[float, float]]) -> dict[str, float]:
        queries_s, replies_s = zip(*durations.values(), strict=True)
        replies = [reply_words(task.dialogue.reply) for task in splits["train"]]
        counts = Counter(word for words in replies for word in words)
        unseen = {word for split in SPLITS[1:] for task in splits[split] for word in reply_words(task.dialogue.reply)}
        return {
            **{f"num_{split}": len(members) for split, members in splits.items()},
            "query_hours": sum(queries_s) / 3600,
            "reply_hours": sum(replies_s) / 3600,
            "query_s_mean": statistics.fmean(queries_s),
            "query_s_max": max(queries_s),
            "reply_s_min": min(replies_s),
            "reply_s_mean": statistics.fmean(replies_s),
            "reply_s_max": max(replies_s),
            "reply_words_mean": statistics.fmean(map(len, replies)),
            "lexicon_words": len(counts),
            "lexicon_min_count": min(counts.values()),
            "lexicon_median_count": statistics.median(counts.values()),
            "words_not_in_train": len(unseen - set(counts)),
        }


def _speak_chunk(root: Path, tasks: list[_Task], keep_existing: bool) -> dict[str, tuple[float, float]]:
    """Write the files of some examples and return the seconds of query and reply by id.

    The library is loaded again for each chunk and a chunk is spoken whole, so that its files do not depend on what this
    process spoke before.
    """
    global _synthesizer
    paths = {task.id: (root / task.query_file, root / task.reply_file) for task in tasks}
    if keep_existing and all(_is_valid(path) for pair in paths.values() for path in pair):
        return {name: (_duration_s(query), _duration_s(reply)) for name, (query, reply) in paths.items()}
    if _synthesizer is None:
        _synthesizer = EspeakSynthesizer()
    _synthesizer.reset()
    durations = {}
    replies_s: dict[Path, float] = {}
    for task in tasks:
        query_path, reply_path = paths[task.id]
        query_s = _write_speech(query_path, _synthesizer.synthesize(task.dialogue.query, task.query_voice))
        if reply_path not in replies_s:
            reply = _synthesizer.synthesize(task.dialogue.reply, task.reply_voice, task.phrases)
            replies_s[reply_path] = _write_speech(reply_path, reply)
        durations[task.id] = (query_s, replies_s[reply_path])
    return durations


def _write_speech(path: Path, waveform: np.ndarray) -> float:
    """Write a file and return its seconds."""
    _write_wav(path, waveform)
    return waveform.size / SAMPLE_RATE


def _is_valid(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    return info.samplerate == SAMPLE_RATE and info.channels == 1 and info.frames > 0


def _duration_s(path: Path) -> float:
    return soundfile.info(path).duration


def _write_wav(path: Path, waveform: np.ndarray) -> None:
    encoded = io.BytesIO()  # given a path, libsndfile waits for the disk, which takes longer than to speak
    soundfile.write(encoded, waveform, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    with replacing(path) as partial:
        partial.write_bytes(encoded.getbuffer())


def _require_range(name: str, found: Sequence[int], low: int, high: int) -> None:
    if len(found) != 2 or not low <= found[0] <= found[1] <= high:
        raise UserError(f"{name}={list(found)}: give the lowest and the highest, from {low} to {high}")


def _by_split(usual: Sequence[str], of_training: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    return {split: tuple(usual if split != "train" or of_training is None else of_training) for split in SPLITS}
