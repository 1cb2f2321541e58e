from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

regex = pytest.importorskip("regex")

from fastcl.data import DataError, load
from fastcl.data.text import TextViews, from_bytes, to_bytes
from fastcl.transforms import text as T

FAMILY, FLAG, THUMB = "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽"
SENTENCE = f"The naïve cafe\u0301 {FAMILY} sold straße maps of Ἀθῆναι to {FLAG} tourists {THUMB}, क्षि too."

CASE = {
    "sharp_s": (T.upper, "straße", None, "STRASSE"),
    "final_sigma": (T.lower, "ὈΔΥΣΣΕΎΣ ΣΑΣ", None, "ὀδυσσεύς σας"),
    "digraph_title": (T.capitalize, "ǆep", None, "ǅep"),
    "ligature": (T.title, "ﬁne ﬂow", None, "Fine Flow"),
    "apostrophe": (T.title, "don't STOP o’clock", None, "Don't Stop O’clock"),
    "quotes": (T.title, "«élan» (vital)", None, "«Élan» (Vital)"),
    "turkish_upper": (T.upper, "ılık iyi", "tr", "ILIK İYİ"),
    "turkish_lower": (T.lower, "ILIK İYİ", "tr-TR", "ılık iyi"),
    "turkish_lower_decomposed": (T.lower, "I\u0307YI\u0323\u0307", "tr", "iyi\u0323"),
    "turkish_lower_other_accent": (T.lower, "I\u0301\u0307", "tr", "ı\u0301\u0307"),
    "turkish_title": (T.title, "istanbul IRMAK İZMİR ısı", "az", "İstanbul Irmak İzmir Isı"),
    "turkish_title_decomposed": (T.capitalize, "I\u0307STANBUL", "tr", "İstanbul"),
    "english_title": (T.title, "istanbul IRMAK", "en", "Istanbul Irmak"),
    "title_sigma": (T.title, "ΝΌΣΤΟΣ ΟΣ", None, "Νόστος Ος"),
    "emoji": (T.upper, f"a{FAMILY}{FLAG}", None, f"A{FAMILY}{FLAG}"),
    "nothing_cased": (T.capitalize, "!? 😀", None, "!? 😀"),
}


@pytest.mark.parametrize("name", CASE)
def test_case(name: str):
    function, text, locale, wanted = CASE[name]
    assert function(text, locale) == wanted


def test_turkish_round_trip():
    assert T.lower(T.upper("ışık içinde iğne", "tr"), "tr") == "ışık içinde iğne"


def test_graphemes_are_what_a_reader_counts():
    assert T.graphemes(f"e\u0301{FAMILY}{FLAG}{FLAG}\r\n한") == ["e\u0301", FAMILY, FLAG, FLAG, "\r\n", "한"]


ALL = {
    "upper": T.RandomUpper(0.5),
    "lower": T.RandomLower(0.5),
    "capitalize": T.RandomCapitalize(0.5),
    "title": T.RandomTitle(0.5),
    "char_swap": T.RandomCharSwap(0.3),
    "typo": T.RandomTypo(0.3),
    "char_delete": T.RandomCharDelete(0.3),
    "word_delete": T.RandomWordDelete(0.3),
    "word_order": T.RandomWordOrder(1.0),
    "word_crop": T.RandomWordCrop((0.2, 1.0)),
    "synonym": T.RandomSynonym({"naive": "simple", "maps": ["plans", "charts"]}, 0.5),
    "apply": T.RandomApply([T.RandomUpper(1.0), T.RandomWordOrder(1.0)], 0.5),
}
CHAIN = T.Compose(list(ALL.values()), seed=7)


@pytest.mark.parametrize("name", ALL)
def test_draws_depend_on_seed_epoch_sample_and_view_alone(name: str):
    one = T.Compose([ALL[name]], seed=3)
    texts = [f"{SENTENCE} Number {n} of them." for n in range(64)]
    index = [2**40 + n for n in range(64)]
    whole = one(texts, index, epoch=2, view=1)
    assert [one(text, [n], 2, 1) for text, n in zip(texts, index, strict=True)] == whole  # batch size
    assert one(texts[::-1], index[::-1], 2, 1) == whole[::-1]  # order
    assert T.Compose([ALL[name]], seed=3).views(texts, 2, index, 2)[1] == whole  # another object, another way
    others = (one(texts, index, 3, 1), one(texts, index, 2, 0), T.Compose([ALL[name]], seed=4)(texts, index, 2, 1))
    assert all(other != whole for other in others)
    assert whole != texts


def test_a_transform_does_not_shift_anothers_draws():
    texts, index = [SENTENCE] * 32, range(32)
    never, alone = T.RandomTypo(0.0), T.RandomWordOrder(1.0)
    first = T.Compose([T.RandomApply([never], 0.0), alone], seed=1)(texts, list(index))
    assert T.Compose([T.RandomApply([never], 1.0), alone], seed=1)(texts, list(index)) == first


def test_the_draws_are_philox_and_stay():
    """The stream is part of what a seed means: it must never change."""
    draws = T.Draws(seed=-1, epoch=5, view=2, index=9).part(0)
    first = draws.uniform(3).tolist()
    key = np.array([2**64 - 1, 2 << 32 | 5], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=np.array([0, 0, 1, 9], dtype=np.uint64)).random_raw(8)
    assert first == [float(bits >> np.uint64(11)) * 2.0**-53 for bits in raw[:3]]
    assert draws.uniform(1).tolist() == [float(raw[4] >> np.uint64(11)) * 2.0**-53]  # a call begins a block of four


@pytest.mark.parametrize("name", ["char_swap", "char_delete", "typo", "word_order", "word_delete", "word_crop"])
def test_the_share_that_changes(name: str):
    """Over many texts, the probability asked for, within four standard deviations."""
    words = "alpha bravo charlie delta echo foxtrot golf hotel india juliett"
    n = 400
    out = T.Compose([ALL[name]], seed=0)([words] * n, list(range(n)))
    if name in ("char_delete", "typo"):
        letters = sum(c != " " for c in words)
        if name == "typo":
            changed = sum(sum(a != b for a, b in zip(words, got, strict=True)) for got in out)
        else:
            changed = sum(len(words) - len(got) for got in out)
        assert changed / (n * letters) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / (n * letters)) ** 0.5)
    elif name == "word_delete":
        gone = sum(10 - len(got.split()) for got in out)
        assert gone / (10 * n) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / (10 * n)) ** 0.5)
        assert not any("  " in got or got != got.strip() for got in out)
    elif name == "word_order":
        places = {word: at for at, word in enumerate(words.split())}
        assert max(abs(places[word] - at) for got in out for at, word in enumerate(got.split())) == 3
        assert all(sorted(got.split()) == sorted(words.split()) for got in out)
    elif name == "word_crop":
        assert all(got in words for got in out)
        assert {len(got.split()) for got in out} == set(range(2, 11))
    else:
        assert all(sorted(got) == sorted(words) for got in out)
        assert all(len(a) == len(b) for got in out for a, b in zip(got.split(), words.split(), strict=True))


def test_typos_are_neighbours_in_the_same_case():
    out = T.Compose([T.RandomTypo(1.0)], seed=0)(["gG"] * 200, list(range(200)))
    assert {letter for pair in out for letter in pair} == set("ftyhbvFTYHBV")
    assert all(pair[0].islower() and pair[1].isupper() for pair in out)
    turkish = T.Compose([T.RandomTypo(1.0, "turkish-q", "tr")], seed=0)(["İI"] * 200, list(range(200)))
    assert {pair[0] for pair in turkish} >= {"Ş", "Ü"}
    assert not any(letter in "iı" for pair in turkish for letter in pair)


def test_synonyms_carry_case_and_punctuation():
    swap = T.RandomSynonym({"Straße": "road", "cafe\u0301": ["coffee house"], "big": "large"}, 1.0)
    assert swap("“Big” STRASSE, Café: big! BIG bigger") == "“Large” ROAD, Coffee house: large! LARGE bigger"
    assert T.RandomSynonym({"ırmak": "nehir"}, 1.0, "tr")("IRMAK Irmak irmak") == "NEHİR Nehir irmak"


BAD = {
    "surrogate": (lambda: T.RandomUpper()(["fine", "a\ud800b"]), ValueError, "text 1 has a lone surrogate at 1"),
    "no_text": (lambda: T.RandomUpper()([b"bytes"]), TypeError, "texts must be str, got bytes at 0"),
    "probability": (lambda: T.RandomTypo(1.5), ValueError, "RandomTypo: p must be from 0 to 1"),
    "layout": (lambda: T.RandomTypo(0.1, "dvorak"), ValueError, "layout must be one of qwerty"),
    "distance": (lambda: T.RandomWordOrder(0.5, 0), ValueError, "distance must be at least 1"),
    "scale": (lambda: T.RandomWordCrop((0.0, 1.0)), ValueError, "scale must be a range"),
    "table": (lambda: T.RandomSynonym({"two words": "x"}), ValueError, "single words, got 'two words'"),
    "no_synonym": (lambda: T.RandomSynonym({"a": []}), ValueError, "single words, got 'a'"),
    "transform": (lambda: T.Compose([str.upper]), TypeError, "must be fastcl.transforms.text's"),
    "seed": (lambda: T.Compose([], seed=2**63), ValueError, "seed must be in"),
    "index": (lambda: CHAIN(["a", "b"], [1]), ValueError, "one number for each of 2 texts, got 1"),
    "epoch": (lambda: CHAIN("a", epoch=2**32), ValueError, "epoch must be in"),
    "view": (lambda: CHAIN("a", view=2**16), ValueError, "view in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name: str):
    call, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


# Letters of many scripts, marks, emoji, flags and parts of them that merge where they meet.
PIECES = [
    *"aZiIßſŉ 한ㄱ漢नŽıİσΣςǆﬁ.,-'’«»", "  ", "\t", "\n", "\r\n", "\u0301", "\u0307", "\u200d", "\ufe0f", "\u0600",
    "e\u0301", "I\u0307", "क्षि", "ᄒ", "ᅡ", "ᆫ", FAMILY, FLAG, THUMB, "🇫", "🏽", "🏳️‍🌈", "1️⃣", "\u202e", "𝒳", "\0", "word ",
]  # fmt: skip


def fuzzed(count: int) -> list[str]:
    """Texts of random pieces, and of any code points but surrogates."""
    rng = random.Random(0)
    texts = []
    for number in range(count):
        length = rng.randrange(0, 14)
        if number % 5:
            texts.append("".join(rng.choices(PIECES, k=length)))
        else:
            points = (rng.randrange(0x110000 - 0x800) for _ in range(length))
            texts.append("".join(chr(point + 0x800 * (point >= 0xD800)) for point in points))
    return texts


def test_fuzz_100_000_texts_stay_valid_and_their_characters_whole():
    texts = fuzzed(100_000)
    index = list(range(len(texts)))
    # Case maps letters, the others only choose and move whole characters.
    moved = ("char_swap", "char_delete", "word_delete", "word_order", "word_crop")
    for number, name in enumerate(moved):
        part = slice(number, None, len(moved))
        changed = 0
        for before, after in zip(texts[part], T.Compose([ALL[name]], seed=1)(texts[part], index[part]), strict=True):
            left = T.graphemes(before)
            changed += before != after
            for cluster in T.graphemes(after):
                left.remove(cluster)  # ValueError for one that was not there
            if name in ("char_swap", "word_order"):
                assert not left
        assert changed > 2000, name
    some, numbers = texts[::10], index[::10]
    for before, after in zip(some, CHAIN(some, numbers), strict=True):
        after.encode()  # UnicodeEncodeError for a lone surrogate
        assert bool(before) >= bool(after)
        whole = set(T.graphemes(before))
        emoji = [
            c for c in T.graphemes(after) if unicodedata.category(c[0]) == "So" and c[0].casefold() == c[0].upper()
        ]
        assert whole.issuperset(emoji)


def test_two_views_feed_a_contrastive_loss():
    from fastcl.losses import NTXentLoss

    texts = [f"{SENTENCE} {n}" for n in range(8)]
    first, second = T.Compose([T.RandomWordCrop(), T.RandomTypo(0.1)], seed=0).views(texts, 2, list(range(8)))
    rows = [to_bytes(view, 128).flatten(1).float() for view in (first, second)]
    assert NTXentLoss(0.5)(*rows).isfinite()


def test_bytes_come_back_and_are_cut_between_characters():
    texts = ["", "plain", SENTENCE, FAMILY * 3]
    assert from_bytes(to_bytes(texts, 256)) == texts
    for length in range(1, 60):
        for text, cut in zip(texts, from_bytes(to_bytes(texts, length)), strict=True):
            assert text.startswith(cut)
            assert len(cut.encode()) <= length
            assert T.graphemes(cut) == T.graphemes(text)[: len(T.graphemes(cut))]
    assert from_bytes(to_bytes(["a\0b"], 8)) == ["ab"]
    assert to_bytes([], 8).shape == (0, 1, 1, 8)


def test_python_docs():
    data = load("text")
    assert data.kind == "texts"
    assert data.images.dtype == torch.uint8
    assert data.images.shape[1:] == (1, 1, 256)
    assert len(data.classes) >= 5
    assert data.labels.bincount().min() >= 30
    texts = from_bytes(data.images)
    assert len(set(texts)) > 0.98 * len(texts)  # a paragraph stands once; some begin alike
    assert load("text", limit=60).kind == "texts"


def test_text_files(tmp_path: Path):
    (tmp_path / "de.txt").write_text("eins\nzwei\n\ndrei\nvier\n", encoding="utf-8")
    (tmp_path / "en.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    data = load(f"text:{tmp_path}", text_length=8)
    assert data.classes == ("de", "en")
    assert data.labels.tolist() == [0] * 4 + [1] * 3
    one = load(f"text:{tmp_path / 'de.txt'}")
    assert (one.labels, one.name, len(one.images)) == (None, "de.txt", 4)
    for content, message in ((b"\xff\xfe", "in UTF-8"), (b"\n \n", "a text a line, found none")):
        (tmp_path / "en.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(f"text:{tmp_path}")
    with pytest.raises(DataError, match="expected a text file"):
        load(f"text:{tmp_path / 'missing'}")


def test_int8_embedding_bag():
    from fastcl.quant.embedding import Int8EmbeddingBag

    bag = torch.nn.EmbeddingBag(20, 6, mode="sum", padding_idx=0)
    with torch.no_grad():
        bag.weight[3] = 0
    rows = torch.randint(20, (5, 7))
    int8 = Int8EmbeddingBag.from_float(bag)
    # Each of 7 entries is off by half a scale at most.
    assert (int8(rows) - bag(rows)).abs().max() <= 7 * 0.5 * int8.scale.max() * (1 + 1e-5)
    assert int8.weight.dtype == torch.int8
    with pytest.raises(ValueError, match="mode must be sum"):
        Int8EmbeddingBag.from_float(torch.nn.EmbeddingBag(3, 2))


def test_the_main_job_on_texts(tmp_path: Path):
    for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2"):
        pytest.importorskip(package)
    from fastcl.checkpoint import load_encoder
    from fastcl.config import make_config
    from fastcl.errors import ConfigError
    from fastcl.run import run

    settings = {
        "data": "text",
        "epochs": 4,
        "width": 4,
        "batch_size": 64,
        "threads": 1,
        "text_length": 128,
        "limit": 500,
    }
    metrics = run(make_config(settings), tmp_path / "out", command="fastcl run --data text")
    assert metrics["knn_accuracy"] > metrics["random_encoder_knn_accuracy"] + 0.02
    assert abs(metrics["int8_knn_accuracy"] - metrics["knn_accuracy"]) < 0.03
    assert metrics["int8_encoder_bytes"] < 0.3 * metrics["encoder_bytes"]
    assert metrics["tfidf_knn_accuracy"] > 0.4
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "epoch 2, view B" in report
    assert "TF-IDF" in report
    assert "pixels" not in report.partition("<main>")[2]
    rows = load("text", text_length=128, limit=500).test_images
    float_encoder, int8 = (load_encoder(tmp_path / "out" / f"{n}.safetensors")[0] for n in ("encoder", "encoder_int8"))
    similarity = torch.cosine_similarity(float_encoder.embed(rows), int8.embed(rows)).mean().item()
    assert similarity == pytest.approx(
        json.loads((tmp_path / "out" / "metrics.json").read_text())["int8_cosine_similarity"]
    )
    again = run(make_config(settings | {"epochs": 1}), tmp_path / "again")
    assert again == run(make_config(settings | {"epochs": 1}), tmp_path / "again", resume=True)
    with pytest.raises(ConfigError, match=r"recipe.rotation: unknown setting; there are word_crop"):
        make_config(settings | {"recipe": {"rotation": 3}})
    with pytest.raises(ConfigError, match="two views of a text must differ"):
        make_config(
            settings
            | {
                "recipe": {"word_crop": 1.0}
                | dict.fromkeys(("word_delete", "word_order", "typo", "char_swap", "char_delete", "case"), 0)
            }
        )


def test_views_of_bytes_are_views_of_texts():
    views = TextViews(CHAIN, 256)
    rows = to_bytes([SENTENCE] * 4, 256)
    got = views(rows, torch.arange(4), 1, 1)
    assert from_bytes(got) == CHAIN([SENTENCE] * 4, range(4), 1, 1)
