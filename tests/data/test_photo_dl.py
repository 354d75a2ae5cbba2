import multiprocessing
import os
import pickle
import signal
from dataclasses import replace

import albumentations as A
import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage
from fasttransform import Transform
from small_loaders import TRAIN, VALID, batches, equal, loaders, of_the_training

import fastmask.data.transforms
from fastmask.data.augment import Augmentation
from fastmask.data.contest import read_contest
from fastmask.data.loaders import photo_maps
from fastmask.data.photo import read_photo
from fastmask.data.photo_dl import Share
from fastmask.data.sampler import make_sampler
from fastmask.data.transforms import TensorHeads, TensorPhotos
from fastmask.labels import mix_labels, soft_labels
from fastmask.system.errors import DataError, FastmaskError


class Idle(Transform):
    """An item transform, which makes a loader go photo by photo."""

    def encodes(self, x: TensorHeads):
        return x


def blacken(image, rng):
    image[:] = 0
    return image


@pytest.fixture(scope="module")
def table(contest):
    return read_contest(contest)


def test_a_seed_repeats_and_passes_and_seeds_differ(table):
    one, other = loaders(table), loaders(table)
    first, second = batches(one.train), batches(one.train)
    assert equal(first, batches(other.train))
    assert not equal(first, second)
    assert not equal(first, batches(loaders(table, seed=1).train))
    sent = pickle.loads(pickle.dumps(loaders(table).train))
    assert equal(first, batches(sent))


def test_looking_at_a_batch_does_not_count_a_pass(table):
    one, other = loaders(table), loaders(table)
    seen = one.train.one_batch()
    one.train.show_batch(show=False)
    first = batches(one.train)
    assert equal(first, batches(other.train))
    assert all((a == b).all() for a, b in zip(seen, first[0], strict=True))


def test_an_augmentation_that_gives_no_uint8_photo_is_refused(table):
    with pytest.raises(DataError, match="it gives float64"):
        loaders(table, augments=(VALID, lambda i, rng: VALID(i, rng) / 255)).valid.one_batch()


def test_order_and_augmentation_each_differ_between_passes(table):
    still = loaders(table, augments=(VALID, VALID)).train
    assert [y.tolist() for _, y in batches(still)] != [y.tolist() for _, y in batches(still)]
    dl = loaders(table).train.new(shuffle=False)
    assert not equal(batches(dl), batches(dl))


def test_a_photo_drawn_twice_in_a_pass_is_augmented_twice(table):
    dl = loaders(table).train.new(get_idxs=lambda: [3] * 8, shuffle=False)
    x, y = dl.one_batch()
    assert (y == y[0]).all()
    assert len({image.sum().item() for image in x}) > 1


def test_validation_is_never_augmented_at_random_and_has_no_halves(table):
    made, halves = of_the_training(table)
    dl, dls = loaders(table).valid, loaders(table, train=made, halves=halves)
    first = batches(dl)
    assert equal(first, batches(dl))
    assert equal(first, batches(dls.valid))
    assert dls.train.new(shuffle=False).halves is None


def test_new_keeps_the_arguments_of_this_class(table):
    dl = loaders(table, seed=5).train
    made = dl.new(bs=2)
    assert (made.augments, made.seed, made.fold, made.bs) == (dl.augments, 5, 0, 2)
    assert made.passes is dl.passes


def test_batches_made_whole_are_those_made_photo_by_photo(table):
    maps = [[], photo_maps(table, (TRAIN, VALID))]
    whole, kept = (loaders(table, maps=m) for m in maps)
    single = loaders(table, maps=[])
    for dl in single.loaders:
        dl.after_item.add([Idle()])
    for _ in range(2):
        expected = batches(single.train)
        assert equal(expected, batches(whole.train))
        assert equal(expected, batches(kept.train))
    assert equal(batches(single.valid), batches(kept.valid))


def test_types_are_the_same_whichever_way_a_batch_is_made(table):
    dl = loaders(table).train
    assert [type(t) for t in dl.one_batch()] == [TensorImage, TensorHeads]
    # fastai finds out by one item what decoding has to give back
    assert [type(t) for t in dl.do_batch([dl.do_item(None)])] == [TensorPhotos, TensorHeads]
    assert [type(t) for t in next(iter(dl.create_batches([(0, 0)] * 8)))] == [TensorPhotos, TensorHeads]


def test_a_photo_outside_the_map_is_decoded_on_the_spot(table, monkeypatch):
    dls = loaders(table, maps=photo_maps(table.select(range(7, len(table))), (TRAIN, VALID)))
    assert equal(batches(dls.train), batches(loaders(table, maps=[]).train))
    monkeypatch.setattr(fastmask.data.transforms, "read_photo", lambda path: pytest.fail("it is in the map"))
    dls.train.new(get_idxs=lambda: [9] * 8).one_batch()


def test_a_file_is_read_again_and_not_from_a_map(contest_copy):
    table = read_contest(contest_copy)
    dls = loaders(table)
    path, other = table.photo(3), table.photo(11)
    before = dls.test_dl([str(path)]).one_batch()[0]
    path.write_bytes(other.read_bytes())
    now = [dls.test_dl([named]).one_batch()[0] for named in (str(path), path, str(other))]
    assert (now[0] == now[1]).all()
    assert (now[0] == now[2]).all()
    assert (now[0] != before).any()


def test_a_map_of_another_prefix_is_not_used(table):
    other = (Augmentation(A.Compose([A.CenterCrop(300, 200), A.Resize(64, 32)])),) * 2
    made = loaders(table).train.new(augments=other)
    assert equal(batches(made), batches(loaders(table, augments=other, maps=[]).train))


def test_an_augmentation_that_writes_to_its_photo_changes_neither_maps_nor_arrays(table):
    maps = photo_maps(table, (blacken,))
    before = maps[0].get(str(table.photo(0))).copy()
    dls = loaders(table, augments=(blacken, blacken), maps=maps)
    x, _ = dls.train.one_batch()
    assert x.unique().numel() == 3
    assert np.array_equal(before, maps[0].get(str(table.photo(0))))
    photo = read_photo(table.photo(0))
    dls.test_dl([photo]).one_batch()
    assert photo.any()


def test_an_augmentation_may_give_back_a_view_of_its_photo(table):
    def mirrored(image, rng):
        return image[:, ::-1]

    maps = photo_maps(table, (mirrored,))
    x, _ = loaders(table, augments=(mirrored, mirrored), maps=maps).valid.one_batch()
    plain, _ = loaders(table, augments=(lambda image, rng: image,) * 2, maps=maps).valid.one_batch()
    assert torch.equal(torch.Tensor(x), torch.Tensor(plain).flip(-1))


def test_photos_that_come_out_in_two_sizes_are_refused(table):
    def cut(image, rng):
        return image[: 64 - rng.integers(2)]

    with pytest.raises(DataError, match=r"Photos of a batch are 6\d x 384 and 6\d x 384"):
        batches(loaders(table, augments=(cut, cut)).train)


def test_batches_do_not_share_memory(table):
    dl = loaders(table).train
    held = list(dl)
    sums = [x.sum().item() for x, _ in held]
    for _ in dl:
        pass
    assert sums == [x.sum().item() for x, _ in held]


@pytest.mark.semaphores
@pytest.mark.parametrize("cached", [False, True])
def test_two_workers_give_the_same_batches_as_none(table, cached):
    maps = photo_maps(table, (TRAIN, VALID), "ram") if cached else []
    one, two = loaders(table, maps=[]), loaders(table, maps=maps, num_workers=2)
    for _ in range(1 if cached else 2):
        assert equal(batches(one.train), batches(two.train))
    assert equal(batches(one.valid), batches(two.valid))


@pytest.mark.semaphores
def test_there_are_at_most_as_many_workers_as_batches(table):
    # 84 photos of 12 persons; 4 persons validate
    dls = loaders(table, bs=10, num_workers=64, maps=[])
    assert [len(dl) for dl in dls] == [5, 3]
    assert [dl.fake_l.num_workers for dl in dls] == [5, 3]
    assert equal(batches(dls.valid), batches(loaders(table, bs=10, maps=[]).valid))
    # a loader of more batches has the number that is set
    assert dls.valid.new(bs=1).fake_l.num_workers == 28
    assert dls.test_dl([str(table.photo(0))]).fake_l.num_workers == 1
    assert loaders(table).train.fake_l.num_workers == 0


def end_process(image, rng):
    if torch.utils.data.get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return image


@pytest.mark.semaphores
def test_a_loading_process_that_is_killed_gives_a_sentence(table):
    message = r"A loading process ended on its own \(.*(signal: Killed|exited unexpectedly).*--shm-size.*--workers 0"
    with pytest.raises(FastmaskError, match=message):
        batches(loaders(table, augments=(end_process, end_process), num_workers=1, maps=[]).valid)


@pytest.mark.semaphores
def test_an_augmentation_that_a_spawned_process_cannot_get_gives_a_sentence(table, monkeypatch):
    dls = loaders(table, augments=(lambda image, rng: image,) * 2, num_workers=1, maps=[])
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(type(dls.valid.fake_l), "multiprocessing_context", property(lambda _: spawn))
    with pytest.raises(FastmaskError, match="only get objects that a module defines .*<lambda>.*--workers 0"):
        batches(dls.valid)


def test_a_pass_draws_its_photos_by_their_weights(table):
    made, _ = of_the_training(table)
    weights = np.zeros(len(made))
    weights[3], weights[7] = 0.75, 0.25
    sampler = make_sampler(table.heads, made.labels, made.persons, weights=weights)
    dls = loaders(table, train=replace(made, sampler=sampler))
    drawn = [row for _ in range(30) for _ in [batches(dls.train)] for row in dls.train.order]
    assert set(drawn) == {3, 7}
    assert np.mean(np.array(drawn) == 3) == pytest.approx(0.75, abs=0.03)
    # the same photo twice in a pass is augmented twice
    x = torch.cat([x for x, _ in dls.train])
    assert len(x.flatten(1).unique(dim=0)) > 2
    # for predictions of the training photos each is seen once
    assert sorted(dls.train.new(shuffle=False, drop_last=False).get_idxs()) == list(range(len(made)))


@pytest.mark.semaphores
def test_a_pass_has_one_photo_of_each_person_with_any_number_of_workers(table):
    made, halves = of_the_training(table, partner="any")
    made = made.sample(table.heads, per_person=1)
    persons = sorted(set(made.persons))
    one, other = (loaders(table, bs=3, train=made, halves=halves, num_workers=n) for n in (0, 2))
    orders = []
    for _ in range(3):
        assert equal(batches(one.train), batches(other.train))
        assert one.train.order == other.train.order
        assert sorted(made.persons[one.train.order]) == persons
        orders.append(tuple(one.train.order))
    # eight persons, in batches of three
    assert (one.train.n, len(one.train), len(set(orders))) == (8, 2, 3)
    # another number of photos in a batch, and the rest of a pass, are of the same order
    twice = one.train.new(bs=6)
    twice.pass_ = one.train.pass_
    assert twice.get_idxs() == list(orders[-1])
    assert one.train.start_at(1).get_idxs() == list(orders[-1][3:])
    # for predictions of the training photos each is seen once
    assert len(list(one.train.new(shuffle=False, drop_last=False).get_idxs())) == len(made) == 56
    # a batch larger than an epoch has all of it
    assert [len(x) for x, _ in loaders(table, bs=16, train=made).train] == [8]


def test_processes_share_the_photos_of_a_pass(table):
    made, halves = of_the_training(table, partner="any")
    options = {"weights": {"mask.incorrect": 3}, "target": "gender"}
    made = made.sample(table.heads, per_person={"mask.wear": 2}, **options)
    whole = batches(loaders(table, train=made, halves=halves).train)
    # 8 persons, of each two worn photos and two others, in batches of 8
    assert len(whole) == 4
    parts = [batches(loaders(table, train=made, halves=halves, share=Share(number, 2)).train) for number in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert all(each.equal(torch.cat(pieces)) for each, *pieces in zip(batch, *shares, strict=True))


def test_a_half_comes_from_the_partner_and_so_does_its_share_of_the_label(table):
    made, halves = of_the_training(table, partner="any", probability=1.0)
    plain = loaders(table, augments=(VALID, VALID), train=made)
    dls = loaders(table, augments=(VALID, VALID), train=made, halves=halves)
    each = plain.train.new(shuffle=False, drop_last=False)
    whole, y = (torch.cat(parts) for parts in zip(*batches(each), strict=True))
    seen = 0
    for (x, labels), rows in zip(batches(dls.train), np.array_split(dls.train.order, len(dls.train)), strict=False):
        for i, row in enumerate(rows[: len(x)]):
            changed = (x[i] != whole[row]).any(0).any(0)
            if changed.any() and len(set(labels[i].tolist()) - {0.0, 1.0}):
                seen += 1
                partner = next(r for r in range(len(made)) if (x[i] == whole[r]).all(0).all(0)[changed].all())
                width = changed.nonzero().flatten()
                side = width.max().item() + 1 if width.min() == 0 else 32 - width.min().item()
                expected = mix_labels(
                    soft_labels(y[row : row + 1], table.heads),
                    soft_labels(y[partner : partner + 1], table.heads),
                    torch.tensor([side / 32]),
                    table.heads,
                )
                torch.testing.assert_close(torch.Tensor(labels[i]), torch.Tensor(expected[0]))
    assert seen > 10


@pytest.mark.semaphores
def test_halves_are_the_same_in_workers_and_photo_by_photo(table):
    made, halves = of_the_training(table)
    one, two = (loaders(table, train=made, halves=halves, num_workers=n) for n in (0, 2))
    first = batches(one.train)
    assert equal(first, batches(two.train))
    by_photo = loaders(table, train=made, halves=halves)
    by_photo.train.after_item.add(Idle())
    assert equal(first, batches(by_photo.train))
    assert not equal(first, batches(one.train))
