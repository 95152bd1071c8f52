"""Words and their sub-words, worked by hand on the tests' tokenizer; and what a probe learns and does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.evaluation.tag_scores import score
from rayvec.evaluation.tagged_files import Sentence
from rayvec.evaluation.word_level import (
    Position,
    ProbeSettings,
    WordVectors,
    align,
    default_position,
    majority,
    train_probe,
    word_vectors,
)
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.prompts import Prompts
from tests.models import tiny_llama, tiny_tokenizer

#: Its tokens: <s> t he Ġencoder Ġread s Ġ z z Ġ . (0 to 10)
SENTENCE = Sentence(("the", "encoder", "reads", "zz", "."), ("DT", "NN", "VB", "XX", "PU"))
RANGES = [(1, 3), (3, 4), (4, 6), (7, 9), (10, 11)]
#: <s> a Ġ b (0 to 3)
OTHER = Sentence(("a", "b"), ("DT", "NN"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def encoder(llama: Path) -> TextEncoder:
    return TextEncoder.load(llama)


def states(encoder: TextEncoder, sentence: Sentence) -> np.ndarray:
    return encoder.token_states(encoder.tokenize([" ".join(sentence.words)]))


def ranges(encoder: TextEncoder, *sentences: Sentence) -> list[tuple[list[tuple[int, int]], int]]:
    batch = encoder.tokenize([" ".join(sentence.words) for sentence in sentences])
    return [(found.ranges, found.kept) for found in align(encoder.folder.tokenizer, sentences, batch)]


def test_words_are_found_by_their_letters(encoder: TextEncoder) -> None:
    assert ranges(encoder, SENTENCE, OTHER) == [(RANGES, 11), ([(1, 2), (3, 4)], 4)]


def test_a_template_around_the_text_is_no_words(llama: Path) -> None:
    encoder = TextEncoder.from_decoder(llama, prompts=Prompts(template="inst"))
    ((found, kept),) = ranges(encoder, SENTENCE)
    row = encoder.tokenize([" ".join(SENTENCE.words)]).row(0)
    told = [encoder.folder.tokenizer.tokenizer.decode(row[first:stop]).strip() for first, stop in found]
    assert told == list(SENTENCE.words)
    assert kept == len(row)


@pytest.mark.parametrize("position", ["word", "previous"])
def test_a_words_vector_is_the_mean_of_its_sub_words(encoder: TextEncoder, position: Position) -> None:
    found = word_vectors(encoder, [OTHER, SENTENCE], position)
    back = int(position == "previous")
    states_TD = states(encoder, SENTENCE)
    expected = [states_TD[first - back : stop - back].mean(0) for first, stop in RANGES]
    assert np.abs(found.vectors_WD[2:] - np.stack(expected)).max() < 1e-5
    assert (found.words[2:], found.tags[2:]) == (list(SENTENCE.words), list(SENTENCE.tags))
    assert found.offsets.tolist() == [0, 2, 7]
    assert (found.cut, found.without_tokens) == (0, 0)


def test_the_first_token_of_a_row_has_none_before_it_and_is_read_itself(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    tiny_tokenizer(folder, bos=False)
    encoder = TextEncoder.load(folder)
    found = word_vectors(encoder, [SENTENCE], "previous")  # t he Ġencoder …: no <s>
    states_TD = states(encoder, SENTENCE)
    assert np.abs(found.vectors_WD[0] - states_TD[[0, 0]].mean(0)).max() < 1e-5
    assert np.abs(found.vectors_WD[1] - states_TD[1]).max() < 1e-5


def test_words_that_are_cut_are_left_out_and_counted(llama: Path) -> None:
    encoder = TextEncoder.from_decoder(llama, max_length=8)  # the last token that is left is the first z
    found = word_vectors(encoder, [SENTENCE, OTHER], "word")
    assert found.words == ["the", "encoder", "reads", "a", "b"]
    assert found.cut == 2
    assert found.offsets.tolist() == [0, 3, 5]


def test_a_template_after_the_cut_text_is_no_words(llama: Path) -> None:
    encoder = TextEncoder.from_decoder(llama, max_length=18, prompts=Prompts(template="inst"))
    long = Sentence(("encoder",) * 20, ("NN",) * 20)
    row = encoder.tokenize([" ".join(long.words)]).row(0)
    found = word_vectors(encoder, [long], "word")
    inside = encoder.folder.tokenizer.tokenizer.decode(row).split().count("encoder")
    assert 0 < len(found.words) == inside < 20
    assert found.cut == 20 - inside


def test_words_without_tokens_are_left_out_and_counted(encoder: TextEncoder) -> None:
    found = word_vectors(encoder, [Sentence(("a", "", "b"), ("X", "Y", "Z"))], "word")
    assert (found.tags, found.without_tokens, found.cut) == (["X", "Z"], 1, 0)


def test_a_sentence_that_has_no_words_left_is_no_sentence(encoder: TextEncoder) -> None:
    empty = Sentence(("",), ("X",))
    assert word_vectors(encoder, [OTHER, empty, OTHER], "word").offsets.tolist() == [0, 2, 4]
    with pytest.raises(UserError, match="no word of the sentences has a whole token"):
        word_vectors(encoder, [empty], "word")


def test_sentences_are_read_alike_in_groups_of_any_size(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [SENTENCE, OTHER, Sentence(("",), ("X",)), SENTENCE]
    whole = word_vectors(encoder, sentences, "previous")
    monkeypatch.setattr("rayvec.evaluation.word_level._SENTENCES", 1)
    single = word_vectors(encoder, sentences, "previous")
    assert np.abs(whole.vectors_WD - single.vectors_WD).max() < 1e-5
    assert whole.offsets.tolist() == single.offsets.tolist() == [0, 5, 7, 12]
    assert (whole.words, whole.tags) == (single.words, single.tags)


def test_models_with_mntp_among_their_stages_are_read_one_place_earlier(encoder: TextEncoder) -> None:
    assert default_position(encoder) == "word"
    assert default_position(TextEncoder.load("tiny")) == "previous"


def clouds(words: int, seed: int, *, shuffled: bool = False) -> WordVectors:
    """Words of three tags in clouds of their own, 5 words a sentence, no word twice; X is half of them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, words, p=[0.5, 0.25, 0.25])
    vectors = np.eye(3, 8)[labels] * 4 + rng.normal(0, 1, (words, 8))
    labels = rng.permutation(labels) if shuffled else labels
    tags = ["XYZ"[label] for label in labels]
    names = [f"{seed}-{i}" for i in range(words)]
    return WordVectors(vectors.astype(np.float32), names, tags, np.arange(0, words + 1, 5), 0, 0)


SETTINGS = ProbeSettings(steps=300, learning_rate=0.02)


def accuracies(train: WordVectors, test: WordVectors) -> tuple[float, float]:
    """Of the probe, and of each word's usual tag."""
    found = train_probe(train, SETTINGS).predict(test.vectors_WD), majority(train, test.words)
    probe, usual = (score(test.tags, tags, test.offsets).accuracy.mean for tags in found)
    return probe, usual


def test_a_probe_learns_what_the_vectors_tell() -> None:
    probe, usual = accuracies(clouds(1000, 1), clouds(500, 2))
    assert usual < 0.6 and probe > 0.95


def test_a_probe_does_not_learn_what_they_do_not_tell() -> None:
    probe, usual = accuracies(clouds(1000, 1, shuffled=True), clouds(500, 2, shuffled=True))
    assert probe <= usual + 0.02


def test_the_same_seed_gives_the_same_probe_and_leaves_other_randomness_alone() -> None:
    import torch

    train = clouds(200, 1)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    probes = [train_probe(train, SETTINGS.replace(steps=20, seed=seed)) for seed in (0, 0, 1)]
    assert torch.rand(1) == expected
    assert np.array_equal(probes[0].weight_LD, probes[1].weight_LD)
    assert not np.array_equal(probes[0].weight_LD, probes[2].weight_LD)


def test_every_sentence_is_seen_before_one_is_seen_again() -> None:
    from rayvec.evaluation.word_level import _batches

    steps = list(_batches(10, ProbeSettings(steps=5, batch_size=4)))
    assert [len(step) for step in steps] == [4] * 5
    assert Counter(np.concatenate(steps).tolist()) == dict.fromkeys(range(10), 2)
    assert sorted(np.concatenate(steps)[:10]) == list(range(10))


def test_the_usual_tag_of_a_word_or_of_all() -> None:
    tags = ["A", "B", "B", "C", "C", "C"]
    train = WordVectors(np.zeros((6, 1), np.float32), ["x", "x", "x", "y", "y", "z"], tags, np.array([0, 6]), 0, 0)
    assert majority(train, ["x", "y", "new"]) == ["B", "C", "C"]
