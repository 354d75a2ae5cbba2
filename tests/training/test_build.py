import pytest

from fastmask.config import make_config
from fastmask.data.augment import REPORT_STATS, build_augmentations, to_plain
from fastmask.data.contest import read_contest
from fastmask.data.pipelines import effective_pipelines, report_pipelines
from fastmask.system.errors import UsageError
from fastmask.training.build import apply_head_weights, build_initial_network, resolve_stats
from fastmask.training.effective_config import effective_config


def pipelines_of(config):
    return effective_pipelines(config, resolve_stats(config))


def test_statistics_can_be_the_report_s_the_body_s_or_six_numbers():
    def stats(value):
        return resolve_stats(make_config({"arch": "tf_efficientnet_lite0", "stats": value}))

    assert stats(None) is None
    assert stats("report") == ((0.548, 0.504, 0.479), (0.237, 0.247, 0.246))
    assert stats("pretrained") == ((0.5,) * 3, (0.5,) * 3)
    assert stats([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_crop_resize_and_statistics_end_in_the_pipelines():
    config = make_config({"crop": [300, 150], "resize": [60, 30], "stats": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]})
    for plain in pipelines_of(config).values():
        crop, resize, *_, normalize, _ = plain["transform"]["transforms"]
        assert (crop["height"], crop["width"], resize["height"], resize["width"]) == (300, 150, 60, 30)
        assert list(normalize["mean"]) + list(normalize["std"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_statistics_reach_a_custom_pipeline(small_settings):
    pipelines = {name: small_settings[name] for name in ("train_pipeline", "valid_pipeline")}
    for stats, expected in (([0.5] * 6, ((0.5,) * 3, (0.5,) * 3)), (None, REPORT_STATS)):
        made = pipelines_of(make_config({"stats": stats, **pipelines}))
        assert [a.stats for a in build_augmentations(made)] == [expected] * 2
    own = to_plain(report_pipelines(stats=((0.1,) * 3, (0.9,) * 3))[1])
    both = {"train_pipeline": own, "valid_pipeline": own}
    assert build_augmentations(pipelines_of(make_config(both)))[0].stats == ((0.1,) * 3, (0.9,) * 3)
    with pytest.raises(UsageError, match="give the statistics once"):
        pipelines_of(make_config({**both, "stats": "report"}))


@pytest.mark.parametrize("crop", [[100, 50], [400, 200]])
def test_a_crop_with_custom_pipelines_is_refused(small_settings, crop):
    with pytest.raises(UsageError, match="fit, crop, crop_pct, resize, auto_resize have no effect with train_pipeline"):
        pipelines_of(make_config(small_settings, {"crop": crop}))


def test_a_saved_configuration_can_be_varied(finished_run, contest):
    saved = effective_config(read_contest(contest), make_config({"arch": "test_resnet", "crop": [300, 150]})).to_plain()
    varied = pipelines_of(make_config(saved, {"crop": [400, 200]}))
    assert varied["train"]["transform"]["transforms"][0]["height"] == 400


def test_heads_that_are_not_named_keep_their_share(contest):
    heads = read_contest(contest).heads
    weighted = apply_head_weights(heads, make_config({"head_weights": {"gender": 0, "age": 0.5}}))
    assert [head.weight for head in weighted] == [1, 0, 0.5]
    assert weighted.unlearned == ("gender",)
    with pytest.raises(UsageError, match="head_weights is 0 for every head"):
        apply_head_weights(heads, make_config({"head_weights": dict.fromkeys(heads.names, 0)}))


def test_heads_of_another_layer_than_the_run_s_start_at_random(finished_run):
    settings = {"arch": finished_run.config.arch, "weights": str(finished_run.path)}
    own = make_config(settings, {"per_head": {"age": {"hidden": 4}}})
    network = build_initial_network(own, finished_run.heads, fold=0)
    assert network.initial_weights.endswith("tensors, the layer of age random")
    plain = build_initial_network(make_config(settings), finished_run.heads, fold=0)
    assert network.heads[0].weight.equal(plain.heads[0].weight)
    assert network.heads[2].output.weight.shape == (3, 4)
