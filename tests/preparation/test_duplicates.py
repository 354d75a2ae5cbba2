import cv2
import numpy as np
import pytest

from fastmask.data.contest import read_contest
from fastmask.data.photo import read_photo
from fastmask.preparation.duplicates import ALIKE, SAME, exact_groups, likeness, mirrored, near_pairs, shrink, signature


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


@pytest.fixture(scope="module")
def signatures(table):
    return np.stack([signature(shrink(read_photo(table.photo(row)))) for row in range(len(table))])


@pytest.fixture(scope="module")
def photo(table):
    return read_photo(table.photo(6))


def recoded(photo, quality=50):
    data = cv2.imencode(".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


COPIES = {
    "recoded": recoded,
    "half the size": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda p: np.clip(p * 1.1, 0, 255).astype(np.uint8),
    "darker": lambda p: (p * 0.9).astype(np.uint8),
    "cropped": lambda p: np.ascontiguousarray(p[8:-8, 6:-6]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_known_again(photo, kind):
    copy = COPIES[kind](photo)
    assert signature(shrink(photo)) @ signature(shrink(copy)) > ALIKE + 0.04
    assert likeness(photo, copy) > SAME + 0.02


def test_a_mirrored_copy_by_its_mirrored_signature(photo):
    flipped = np.ascontiguousarray(photo[:, ::-1])
    one, other = signature(shrink(photo)), signature(shrink(flipped))
    assert np.allclose(mirrored(one[None])[0], other, atol=1e-3)
    assert one @ other < ALIKE


def test_two_people_are_not_one_picture(table):
    normal = [read_photo(table.photo(row)) for row in range(6, len(table), 7)]
    assert max(likeness(a, b) for i, a in enumerate(normal) for b in normal[:i]) < SAME - 0.02


def test_blank_photos_have_signatures():
    blank, dark = (np.full((40, 30, 3), level, np.uint8) for level in (128, 0))
    assert np.isfinite(signature(shrink(blank))).all()
    assert np.isfinite(likeness(blank, dark))


def test_duplicated_contents():
    assert exact_groups(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    assert exact_groups([]) == []


def by_hand(signatures, persons, contents, alike):
    """The pairs of persons by two plain loops: {persons: (best similarity, number of pairs)}."""
    found = {}
    for j in range(len(signatures)):
        for i in range(j):
            likest = max(signatures[i] @ signatures[j], mirrored(signatures[i : i + 1])[0] @ signatures[j])
            if persons[i] != persons[j] and contents[i] != contents[j] and likest >= alike:
                best, count = found.get(frozenset((persons[i], persons[j])), (0, 0))
                found[frozenset((persons[i], persons[j]))] = max(best, likest), count + 1
    return found


@pytest.mark.parametrize("block", [5, 64, 84, 1000])
def test_blocks_find_what_plain_loops_find(table, signatures, block):
    contents = [0, 0, *range(2, len(table))]
    expected = by_hand(signatures, table.persons, contents, 0.6)
    found = near_pairs(signatures, table.persons, contents, alike=0.6, block=block)
    assert len(expected) > 10
    assert {frozenset(table.persons[[p.one, p.other]]): p.pairs for p in found} == {
        k: v[1] for k, v in expected.items()
    }
    for pair in found:
        assert pair.similarity == pytest.approx(expected[frozenset(table.persons[[pair.one, pair.other]])][0], abs=1e-5)
    assert [p.similarity for p in found] == sorted((p.similarity for p in found), reverse=True)


def test_nothing_to_compare():
    assert near_pairs(np.empty((0, 1153), np.float32), [], []) == []
