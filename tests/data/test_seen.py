import hashlib

import numpy as np
import pytest

from fastmask.data.contest import read_contest
from fastmask.data.seen import Validation, hash_names, hashes_to_text, text_to_hashes


def blake(kind, text):
    return hashlib.blake2b(text.encode(), digest_size=8, person=kind.encode()).digest()


def test_hashes_are_eight_bytes_of_blake2_by_kind():
    made = hash_names(photos=["ab"], persons=["ab", "ä b"], paths=["ab"])
    assert made == {blake("photo", "ab"), blake("person", "ab"), blake("person", "ä b"), blake("path", "ab")}
    assert all(len(one) == 8 for one in made)


def test_the_text_of_hashes_is_the_same_whatever_their_order():
    names = [str(number) for number in range(1000)]
    made, turned = hash_names(photos=names), hash_names(photos=reversed(names))
    text = hashes_to_text(made)
    assert text == hashes_to_text(turned)
    # eleven characters per photo
    assert len(text) < 10700
    assert text_to_hashes(text) == made
    assert text_to_hashes(hashes_to_text(frozenset())) == frozenset()


@pytest.mark.parametrize("text", ["AAAA", "!!!!", "ä", "AAAAAAAAAAA"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        text_to_hashes(text)


def test_a_photo_is_found_before_a_person_and_a_person_only_where_they_are_whole(contest):
    table = read_contest(contest).select(range(14))
    folds, digests = np.repeat([0, 1], 7), [f"digest {row}" for row in range(14)]
    one, other = dict.fromkeys(table.persons)
    validation = Validation(table, folds, digests)
    paths = table.frame["path"].tolist()
    assert validation.chosen_folds == [0, 1]
    assert validation.find(hash_names(photos=["digest 3"], persons=[one]), 0) == f"photo {paths[3]}"
    assert validation.find(hash_names(photos=["digest 3"], persons=[one]), 1) is None
    assert validation.find(hash_names(paths=[paths[9]]), 1) == f"photo {paths[9]}"
    assert validation.find(hash_names(persons=[other]), 1) == validation.find(hash_names(persons=[other]))
    assert validation.find(hash_names(persons=[other])) == f"person {other}"
    leaky = Validation(table, folds, digests, "none", [1])
    assert leaky.chosen_folds == [1]
    assert leaky.find(hash_names(persons=[other])) is None
