"""services.textstats.counting: pieces that add up to the whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.textstats import counting
from services.textstats.shapes import Counts, WordCount

TEXT = st.text(st.sampled_from("abÄß'’_1 \t\n\u2003.,<&"), max_size=200) | st.text(max_size=100)


@given(TEXT, st.integers(0, 12))
def test_the_pieces_of_a_text_add_up_to_it(text: str, pieces: int) -> None:
    """Joined they are the text, and their merged counts are its counts, wherever it was cut."""
    parts = counting.split(text, pieces)
    assert "".join(parts) == text
    assert 1 <= len(parts) <= max(1, pieces)
    assert counting.merge(map(counting.count, parts)) == counting.count(text)


def test_a_text_is_cut_into_pieces_of_about_the_same_length() -> None:
    """Nobody gets twice the work of another."""
    parts = counting.split("word " * 1000, 4)
    assert len(parts) == 4
    assert max(map(len, parts)) - min(map(len, parts)) <= 10


def test_a_text_without_white_space_is_one_piece() -> None:
    """A word is never cut, however long."""
    assert counting.split("x" * 100, 5) == ["x" * 100]


def test_words_are_counted_without_regard_to_case_and_keep_their_apostrophes() -> None:
    """What a word is, by example."""
    found = counting.count("Don't STOP — don't stop!\nStraße STRASSE\n")
    assert found == Counts(characters=40, lines=2, words={"don't": 2, "stop": 2, "strasse": 2})


def test_a_report_names_the_most_frequent_words_first() -> None:
    """Ties in alphabetical order, so that the same text always gives the same report."""
    told = counting.report(counting.count("b a c a b d"), 3)
    assert told.top == [WordCount("a", 2), WordCount("b", 2), WordCount("c", 1)]
    assert (told.words, told.distinct) == (6, 4)


def test_cleaning_takes_markup_out() -> None:
    """Tags, entities, and letters that only look different."""
    assert counting.clean("<p>ﬁsh &amp; chips</p>") == " fish & chips "


def test_paragraphs_stand_between_blank_lines() -> None:
    """However many of those, and whatever white space is in them."""
    assert list(counting.paragraphs("\n\na\nb\n \n\n\nc\n\n")) == ["a\nb", "c"]
