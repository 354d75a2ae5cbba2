import ast
from pathlib import Path

import pytest
import yaml

import fastmask
from fastmask.config import (
    PANELS,
    Config,
    Kind,
    list_recipes,
    make_config,
    parse_sets,
    read_class_weights,
    read_recipe,
    read_settings,
    recipe_of,
    spell_option,
)
from fastmask.system.errors import UsageError
from fastmask.system.fields import describe, option_name
from fastmask.system.yaml_text import to_yaml

# settings without an option of their own: --set and files reach them
NO_OPTION = ["score_age_bounds", "tuned", "train_pipeline", "valid_pipeline", "alpha", "order_spread", "head_weights"]
PIPELINES = {"train_pipeline": {}, "valid_pipeline": {}}
# some settings of each kind, and some that are not
KINDS = {
    Kind.TABLE: (["data", "heads", "fixes", "score_age_bounds"], ["folds", "boxes", "seed"]),
    Kind.PATH: (
        ["data", "images", "images_also", "folds_file", "weights", "cache_dir"],
        ["arch", "address", "image_column"],
    ),
    Kind.SCORED: (["folds_file", "stratify", "folds", "group", "seed", "on_bad_photo"], ["crop", "epochs", "on_nan"]),
    Kind.FLATTERING: (["weights", "pseudo", "teacher"], ["pretrained", "extra", "group"]),
    Kind.TRAINING: (["extra", "mixup", "drop_rate", "lr", "epochs", "compile", "hours"], ["arch", "crop", "precision"]),
    Kind.FOCAL: (["focal_gamma", "alpha", "label_smoothing", "f1_share", "teacher_temperature"], ["loss", "order"]),
    Kind.MACHINE: (["cache", "hours", "save_every", "wandb", "launcher", "workers"], ["precision", "on_nan", "bs"]),
    Kind.NUMERICS: (["precision", "tf32", "compile"], ["device", "bs"]),
    Kind.FAULT: (["on_nan", "on_bad_photo"], ["patience"]),
    Kind.RESTATED: (
        ["hours", "minutes", "launcher", "address", "per_fold", "fetch"],
        ["wandb", "workers", "save_every"],
    ),
    Kind.LAUNCHING: (["launcher", "address", "per_fold", "fetch"], ["hours", "device"]),
    Kind.UNSCORED: (["refit"], ["epochs", "swa"]),
    Kind.LAYERS: (["per_head", "feature_loss", "feature_head", "feature_args"], ["arch", "feature_weight", "loss"]),
}
# settings that have no effect without another, and a value for each
NEEDS = {
    "extra_images": ("extra", "x"),
    "extra_weight": ("extra", 0.7),
    "pseudo_weight": ("pseudo", 0.7),
    "pseudo_least": ("pseudo", 0.7),
    "teacher_weight": ("teacher", 0.7),
    "teacher_temperature": ("teacher", 0.7),
    "margin": ("boxes", 0.7),
    "region": ("boxes", "forehead"),
    "no_face": ("boxes", "crop"),
    "mix_prob": ("mixup or cutmix", 0.5),
    "mix_classes": ("mixup or cutmix or half_cutmix", ["age.60+"]),
    "mix_partner": ("mixup or cutmix", "same"),
    "half_shares": ("half_cutmix", [0.2, 0.3]),
    "half_partner": ("half_cutmix", "any"),
    "unfreeze": ("freeze", 2),
    "sam_adaptive": ("sam", True),
    "feature_weight": ("feature_loss", 0.7),
    "feature_head": ("feature_loss", "age"),
    "feature_args": ("feature_loss", {"margin": 0.3}),
}


@pytest.mark.parametrize("name", Config.model_fields)
def test_a_setting_is_described_once(name):
    shown, field = describe(Config, name), Config.model_fields[name]
    assert field.description.endswith(".")
    assert (shown.panel in PANELS) == (name not in NO_OPTION)
    assert shown.panel in (*PANELS, None)
    assert " or ".join(shown.needs) == NEEDS.get(name, ("",))[0]
    assert not shown.common or shown.panel
    # a note replaces a default that says nothing
    assert field.default is None or shown.note is None or "auto" in shown.note


@pytest.mark.parametrize("kind", Kind)
def test_the_kinds_of_settings(kind):
    has, lacks = KINDS[kind]
    found = Config.of_kind(kind)
    assert set(has) <= set(found)
    assert not set(lacks) & set(found)


def test_which_kinds_imply_others():
    kinds = {kind: set(Config.of_kind(kind)) for kind in Kind}
    assert not kinds[Kind.TABLE] & kinds[Kind.SCORED]
    assert kinds[Kind.LAUNCHING] < kinds[Kind.RESTATED] < kinds[Kind.MACHINE]
    assert kinds[Kind.FOCAL] < kinds[Kind.TRAINING]
    assert not (kinds[Kind.TABLE] | kinds[Kind.SCORED]) & kinds[Kind.TRAINING]


@pytest.mark.parametrize("name", NEEDS)
def test_a_setting_that_needs_another_has_no_effect_alone(name):
    needed, value = NEEDS[name]
    with pytest.raises(UsageError, match=f"{name} has no effect without {needed}: give (both or neither|one of them)"):
        make_config({name: value})


def test_no_other_module_sorts_settings_by_a_list_of_its_own():
    root, lists = Path(fastmask.__file__).parent, set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                names = [e.value if isinstance(e, ast.Constant) else None for e in node.elts]
                if len(names) > 3 and set(names) <= set(Config.model_fields):
                    lists.add(file.relative_to(root).as_posix())
    # which settings a kind of data has, which of them another section of the report shows, which regularise
    assert lists - {"config.py"} == {"data/readers.py", "report/sections/facts.py", "evaluation/advice.py"}


def test_the_words_that_set_a_setting():
    assert option_name(Config, "drop") == "--drop-ages"
    assert option_name(Config, "tf32") == "--tf32/--no-tf32"
    assert spell_option("cache_dir", "a b") == ["--cache-dir", "a b"]
    assert spell_option("per_fold", {"gpu": 0.5, "cpu": 4}) == ["--per-fold", "gpu=0.5,cpu=4"]
    assert (spell_option("fetch", True), spell_option("fetch", False)) == (["--fetch"], ["--no-fetch"])
    assert spell_option("hours", 2.0) == ["--hours", "2"]


def test_the_defaults_are_the_report_with_honest_folds():
    config = Config()
    assert (config.arch, config.crop, config.folds, config.group) == ("tf_efficientnet_b4", None, 5, "person")
    assert (config.lr, config.wd, config.bs, config.lr_gamma) == (3e-4, 1e-5, 32, 0.5)
    assert (config.epochs, config.milestones, config.focal_gamma, config.patience) == (20, [0.5, 0.75], 2.0, 5)


def test_later_layers_win_and_nested_ones_merge():
    config = make_config({"lr": 1.0, "alpha": {"age": [1, 1, 4]}}, {"lr": 2.0, "alpha": {"mask": [1, 2, 3]}})
    assert config.lr == 2.0
    assert config.alpha == {"age": [1, 1, 4], "mask": [1, 2, 3]}


def test_the_later_of_weights_and_pretrained_wins():
    hub, file = {"pretrained": True}, {"weights": "a.pth"}
    assert (make_config(hub, file).weights, make_config(hub, file).pretrained) == ("a.pth", False)
    assert (make_config(file, hub).weights, make_config(file, hub).pretrained) == (None, True)


def test_the_later_time_limit_wins():
    hours, minutes = {"hours": 2}, {"minutes": 30}
    assert [make_config(hours, minutes).time_limit, make_config(minutes, hours).time_limit] == ["minutes", "hours"]
    assert [make_config(one).limit_seconds for one in (hours, minutes, {})] == [7200, 1800, None]
    # as a whole config.yaml says it
    assert make_config(hours, {"hours": None, "minutes": None}).limit_seconds is None


def test_the_configuration_survives_yaml():
    config = make_config({"crop": [200, 100], "stats": [0.5] * 6, "head_weights": {"age": 2}})
    assert make_config(yaml.safe_load(yaml.safe_dump(config.to_plain()))) == config


def test_sets_are_nested_yaml():
    pairs = ["alpha.age=[1, 1, 4]", "focal-gamma=1.5", "pretrained=false"]
    assert parse_sets(pairs) == {"alpha": {"age": [1, 1, 4]}, "focal_gamma": 1.5, "pretrained": False}


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_a_configuration(name):
    assert make_config(read_recipe(name)) != Config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "There is no setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": "many"}, "Setting epochs: found 'many', expected a whole number from 1 to 65536."),
        ({"epochs": 2.5}, "Setting epochs: found 2.5, expected a whole number from 1"),
        ({"epochs": True}, "Setting epochs: found True, expected a whole number"),
        ({"epochs": None}, "Setting epochs: found nothing, expected a whole number"),
        ({"pretrained": "maybe"}, "Setting pretrained: found 'maybe', expected true or false."),
        ({"crop": "wide"}, "Setting crop: found 'wide', expected two whole numbers from 1 to 65536."),
        ({"crop": [1, 2, 3]}, r"Setting crop: found \[1, 2, 3\], expected two whole numbers"),
        ({"heads": 5}, "Setting heads: found 5, expected columns to learn, such as colour,shape; in a file"),
        ({"heads": {"a": {"classes": ["x"], "bound": 3}}}, "Setting heads: found .*, expected columns to learn"),
        ({"save_every": "often"}, "Setting save_every: found 'often', expected steps"),
        ({"data": ["a"]}, r"Setting data: found \['a'\], expected contest folder"),
        ({"Batch-Size": 1}, "There is no setting 'Batch-Size'; did you mean 'bs'"),
        ({"training": {"lr": 1}}, "There is no setting 'training'; give lr by itself, not inside training."),
        ({"epochs": 0}, "Setting epochs: found 0, expected a whole number from 1 to 65536."),
        ({"crop": [0, 10]}, r"Setting crop: found \[0, 10\], expected two whole numbers from 1 to 65536"),
        ({"lr": float("nan")}, "Setting lr: found nan, expected a number above 0"),
        (
            {"alpha": {"age": [1, 1, 1e300]}},
            "Setting alpha: found .*, expected class weights per head, .*: numbers from 0 to 1e.06",
        ),
        (
            {"head_weights": {"age": 1e7}},
            "Setting head_weights: found {'age': 10000000.0}, expected weight of .*: numbers from 0 to 1e.06",
        ),
        (
            {"extra": "a.csv", "extra_weight": 1e7},
            "Setting extra_weight: found .*, expected a number above 0 and up to 1e.06",
        ),
        ({"cutmix": 1e-300}, "cutmix is 1e-300; expected 0 for none, or 0.001 to 1000"),
        ({"mixup": 1e300}, "Setting mixup: found 1e.300, expected a number from 0 to 1000"),
        ({"lr": 1e300}, "Setting lr: found 1e.300, expected a number above 0 and up to 1e.30"),
        (
            {"sched": "steps"},
            "Setting sched: found 'steps', expected multistep, onecycle, cosine, restarts, poly, plateau or constant",
        ),
        ({"age_bounds": [60, 30]}, "age_bounds must rise, found 60 30"),
        ({"weights": "a.safetensors", "pretrained": True}, "weights and pretrained exclude each other"),
        ({"train_pipeline": {}}, "train_pipeline and valid_pipeline belong together"),
        ({"stats": [0.5, 0.5, 0.5, 0, 1, 1]}, "three positive deviations"),
        (
            {"stats": [123.675, 116.28, 103.53, 58.395, 57.12, 57.375]},
            "stats are of pixels from 0 to 1, found 123.675 116.28 .*: .* from 0 to 255, divide by 255",
        ),
        ({"stats": [0.5, 0.5]}, "Setting stats: found .*, expected report, pretrained or six numbers"),
        ({"lr": 0}, "Setting lr: found 0, expected a number above 0 and"),
        ({"lr": "fast"}, "Setting lr: .*found 'fast'"),
        ({"lr": {"x": 1}}, "Setting lr: .*found {'x': 1}"),
        ({"drop_rate": 1}, "Setting drop_rate: found 1, expected a number from 0 and below 1."),
        ({"seed": -1}, "Setting seed: .*found -1"),
        ({"seed": 2**32}, "Setting seed: .*found 4294967296"),
        ({"group": "photo"}, "Setting group: found 'photo', expected person or none."),
        ({"loss": "hinge"}, "Setting loss: found 'hinge', expected focal, ce or own."),
        ({"milestones": [0, 4]}, r"Setting milestones: found \[0, 4\], expected a list of numbers above 0."),
        ({"freeze": "head"}, "Setting freeze: found 'head', expected body or a whole number from 1 to 65536"),
        ({"alpha": {"age": {"x": 1, "y": {}}}}, "Setting alpha: found .*, expected class weights per head"),
        ({"train_pipeline": 3, "valid_pipeline": {}}, "Setting train_pipeline: .*found 3"),
        ({"boxes": "b.csv", "region": "ear"}, "Setting region: .*found 'ear'"),
        ({"boxes": "b.csv", "no_face": "skip"}, "Setting no_face: found 'skip', expected whole or crop"),
        ({"no_face": "crop"}, "no_face has no effect without boxes"),
        ({"drop": {"age": [[29, 27]]}}, "drop has the range 29 to 27, which must rise"),
        ({"half_cutmix": 0.5, "half_shares": [0.5, 1]}, "half_shares must be two rising shares between 0 and 1"),
        ({"mix_prob": 0.5}, "mix_prob has no effect without mixup or cutmix"),
        ({**PIPELINES, "erase": 0.5}, "erase has no effect with train_pipeline: .*Erasing"),
        (
            {**PIPELINES, "brightness_contrast": 0},
            "brightness_contrast has no effect with train_pipeline: add RandomBrightnessContrast",
        ),
        ({**PIPELINES, "augment": "flip"}, "augment has no effect with train_pipeline: add its transforms to that"),
        ({"augment": [{"flip": 3}]}, "Setting augment: found .*, expected further augmentations"),
        ({"augment": 3}, "Setting augment: found 3, expected further augmentations of training photos, such as"),
        ({"augment": "flip,,clahe"}, "Setting augment: found 'flip,,clahe', expected further augmentations"),
        ({"auto_augment": "flip"}, "There is no setting 'auto_augment'; did you mean 'augment'"),
        (
            {**PIPELINES, "crop": [9, 9]},
            "fit, crop, crop_pct, resize, auto_resize have no effect with train_pipeline",
        ),
        ({"freeze": "body", "unfreeze": 1}, "unfreeze is epoch 1; expected 2 to the last one, 20"),
        ({"freeze": "body", "unfreeze": 9, "epochs": 5}, "unfreeze is epoch 9; expected 2 to the last one, 5"),
        ({"epochs": 3, "swa": 0.75}, "swa 0.75 of 3 epochs averages under two"),
        ({"ema": 0.9, "swa": 0.2}, "ema and swa exclude each other"),
        ({"refit": 2, "swa": 0.2}, "refit and swa exclude each other"),
        ({"sched": "plateau", "validate_every": 2}, "plateau needs each epoch validated, but validate_every is 2"),
        ({"hours": 2, "minutes": 1}, "hours and minutes exclude each other"),
        ({"launcher": "ray", "minutes": 2}, "launcher and minutes exclude each other"),
        ({"alpha": {"age": [1, 4]}, "class_weight": "auto"}, "alpha and class_weight exclude each other"),
        ({"launcher": "slurm"}, "Setting launcher: found 'slurm', expected local or ray"),
        ({"launcher": "ray", "hours": 2}, "launcher and hours exclude each other"),
        (
            {"launcher": "ray", "per_fold": "half"},
            "Setting per_fold: found 'half', expected shares such as gpu=0.5,cpu=4",
        ),
        (
            {"launcher": "ray", "per_fold": "cpu=2,cpu=4"},
            "Setting per_fold: found .*, expected each of cpu and gpu once",
        ),
        ({"launcher": "ray", "per_fold": "tpu=1"}, "Setting per_fold: found 'tpu=1', expected each fold's share"),
        (
            {"launcher": "ray", "per_fold": "gpu=0"},
            "Setting per_fold: found 'gpu=0', expected each .*: numbers from 0.01 to 1024",
        ),
        ({"launcher": "ray", "per_fold": "cpu=nan"}, "Setting per_fold: found 'cpu=nan', expected each fold"),
        ({"launcher": "ray", "per_fold": {"gpu": 2}}, "per_fold gives each fold 2 GPUs, but a fold trains on one"),
    ],
)
def test_a_mistake_is_one_sentence(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_config(settings)
    assert "\n" not in str(caught.value)


def test_missing_files_and_recipes_are_named(tmp_path):
    with pytest.raises(UsageError, match="There is no recipe 'best'; expected one of quick, report"):
        read_recipe("best")
    with pytest.raises(UsageError, match=r"none\.yaml does not exist"):
        read_settings(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match=r"holds \[1\]; expected lines such as 'epochs: 20'"):
        read_settings(tmp_path / "list.yaml")
    with pytest.raises(UsageError, match="name=value"):
        parse_sets(["epochs"])


def test_class_weights_are_of_heads_as_they_are_called_and_not_nothing(tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_text("skin-tone: [1, 2]")
    assert read_class_weights(file) == {"skin-tone": [1, 2]}
    file.write_text("")
    with pytest.raises(UsageError, match=r"weights\.yaml holds no class weights; expected lines such as 'age: \[1"):
        read_class_weights(file)
    file.write_text("- 1")
    with pytest.raises(UsageError, match=r"holds \[1\]; expected lines such as 'age: \[1"):
        read_class_weights(file)
    with pytest.raises(UsageError, match="does not exist; expected a YAML file of class weights"):
        read_class_weights(tmp_path / "none.yaml")


def test_a_mapping_of_heads_is_replaced_as_a_whole():
    below = {"heads": {"smile": ["no", "yes"], "hat": ["no", "yes"]}}
    above = {"heads": {"digit": ["1", "2"], "age": {"classes": ["young", "old"], "bounds": [40]}}}
    config = make_config(below, above)
    assert list(config.heads) == ["digit", "age"]
    assert make_config(config.to_plain()) == config


def test_a_region_in_a_tall_crop_would_be_nearly_the_whole_face():
    tall = {"boxes": "boxes.csv", "region": "forehead"}
    with pytest.raises(UsageError, match="forehead is wider than high, and a crop of 400 by 200 .* crop 112 224"):
        make_config(tall)
    assert make_config(tall, {"crop": [112, 224]}).region == "forehead"
    assert make_config(tall, {"crop": [200, 200], "region": "chin-to-neck"}).crop == (200, 200)


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"loss": "ce", "focal_gamma": 3}, "focal_gamma has no effect with loss ce"),
        ({"f1_share": 1, "label_smoothing": 0.1}, "label_smoothing has no effect with f1_share 1"),
        ({"f1_share": 1, "class_weight": "auto"}, "class_weight has no effect with f1_share 1"),
        ({"per_fold": "cpu=2"}, "per_fold has no effect with launcher local"),
        ({"per_head": "age.loss=ce,age.gamma=1"}, r"per_head age.gamma has no effect with loss ce"),
        ({"per_head": "age.gamma=1", "loss": "ce"}, r"per_head age.gamma has no effect with loss ce"),
        ({"per_head": "age.f1_share=1,age.loss=ce"}, r"per_head age.loss has no effect with f1_share 1"),
        ({"per_head": "age.label_smoothing=0.1", "f1_share": 1}, "age.label_smoothing has no effect with f1_share 1"),
        ({"per_head": "age.pool=gem", "compile": True}, "compile has no effect with per_head age.pool"),
        ({"address": "auto", "launcher": "local"}, "address has no effect with launcher local"),
        ({"freeze": "body", "layer_decay": 0.5}, "layer_decay has no effect with a body that is frozen to the end"),
    ],
)
def test_what_would_come_to_nothing_is_refused(settings, idle):
    with pytest.raises(UsageError, match=idle):
        make_config(settings)


def test_options_of_heads_are_text_or_a_mapping():
    text = make_config({"per_head": " age.loss=coral, age.hidden=256,my.head.gamma=1"})
    assert text.to_plain()["per_head"] == {"age": {"loss": "coral", "hidden": 256}, "my.head": {"gamma": 1.0}}
    assert make_config(text.to_plain()) == text
    pairs = ["per_head.age.hidden=256", "per_head.age.loss=coral", "per_head.mask.gamma=1.5"]
    nested = make_config({"per_head": {"age": {"hidden": 8}}}, parse_sets(pairs))
    assert nested.to_plain()["per_head"] == {"age": {"loss": "coral", "hidden": 256}, "mask": {"gamma": 1.5}}
    assert make_config(nested.model_dump(exclude_unset=True)) == nested


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("coral", "expected options of heads such as age.loss=coral"),
        ("age.loss=", "expected options of heads such as age.loss=coral"),
        ("age.hidden=8,age.hidden=9", r"expected age.hidden once"),
        ({"age": {"hiden": 8}}, r"Setting per_head.age: There is no option 'hiden'; did you mean 'hidden'\?"),
        ("age.loss=svm", "Setting per_head.age: Option loss: found 'svm', expected focal, ce, coral or cumulative"),
        ("age.hidden=0", "Option hidden: found '?0'?, expected a whole number from 1 to 65536"),
        ("age.drop_rate=1", "Option drop_rate: found '?1'?, expected a number from 0 and below 1"),
        ({"age": "coral"}, r"Setting per_head.age: found 'coral', expected options such as loss: coral"),
        ({"age": None}, r"Setting per_head.age: found None, expected options"),
    ],
)
def test_an_invalid_option_of_a_head_is_one_sentence(given, expected):
    with pytest.raises(UsageError, match=expected):
        make_config({"per_head": given})


def test_a_shared_setting_has_an_effect_if_a_head_uses_it():
    settings = {"loss": "ce", "focal_gamma": 3, "per_head": "age.loss=focal"}
    assert make_config(settings).focal_gamma == 3
    assert make_config({"f1_share": 1, "label_smoothing": 0.1, "per_head": "age.f1_share=0"}).f1_share == 1
    assert make_config({"f1_share": 1, "per_head": "age.loss=coral"}).per_head["age"].loss == "coral"
    with pytest.raises(UsageError, match="focal_gamma has no effect with loss ce"):
        make_config({**settings, "per_head": "age.loss=focal,age.gamma=1"})


def test_shares_are_text_or_a_mapping():
    text = make_config({"launcher": "ray", "per_fold": " gpu=0.5, cpu=4"})
    assert text.per_fold == {"gpu": 0.5, "cpu": 4}
    assert make_config(text.to_plain()) == text


def test_a_body_that_thaws_may_decay_by_layer():
    assert make_config({"freeze": "body", "unfreeze": 2, "layer_decay": 0.5}).layer_decay == 0.5
    assert make_config({"f1_share": 0.9, "label_smoothing": 0.1}).label_smoothing == 0.1


def test_a_file_of_folds_above_takes_the_number_below_away():
    assert "folds" not in make_config({"folds": 3}, {"folds_file": "split.csv"}).model_fields_set
    assert make_config({"folds_file": "split.csv"}, {"folds": 3}).folds == 3


@pytest.mark.parametrize(
    "pair",
    [
        "epochs=" + "9" * 5000,
        "epochs=!!python/object/apply:os.system [true]",
        "epochs=" + "[" * 999,
        ".".join("a" * 1000) + "=1",
    ],
)
def test_what_no_value_can_be_is_said_in_a_short_sentence(pair):
    with pytest.raises(UsageError, match="--set") as caught:
        parse_sets([pair])
    assert len(str(caught.value)) < 500


def test_a_file_of_anything_else_is_answered_in_a_few_sentences():
    with pytest.raises(UsageError, match="There is no setting 'a0'") as caught:
        make_config({f"a{i}": "x" * 5000 for i in range(5000)} | {"epochs": "x" * 5000})
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("crop: 224", {"crop": (224, 224)}),
        ("crop: 224x112", {"crop": (224, 112)}),
        ("resize: 64 32", {"resize": (64, 32)}),
        ("milestones: 0.3", {"milestones": [0.3]}),
        ("milestones: 0.5 0.75", {"milestones": [0.5, 0.75]}),
        ("seed: 010", {"seed": 10}),
        ("epochs: 1e1", {"epochs": 10}),
        ("bs: 16.0", {"bs": 16}),
        ("pretrained: 'False'", {"pretrained": False}),
        ("pretrained: no", {"pretrained": False}),
        ("lr: 1E-3", {"lr": 0.001}),
        ("lr: .001", {"lr": 0.001}),
        ("heads: colour", {"heads": ["colour"]}),
        ("heads: colour,size", {"heads": ["colour", "size"]}),
        ("heads: {a: [yes, no, on], b: [1.0, 010]}", {"heads": {"a": ["yes", "no", "on"], "b": ["1.0", "010"]}}),
        ("drop: 27-29,57", {"drop": {"age": [(27, 29), (57, 57)]}}),
        ("save_every: 500", {"save_every": "500"}),
        ("wandb: 2024", {"wandb": "2024"}),
        ("images: ~", {"images": None}),
        ("head-weights: {on: 2}", {"head_weights": {"on": 2}}),
    ],
)
def test_a_settings_file_says_what_is_meant(text, expected, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    config = make_config(read_settings(tmp_path / "c.yaml"))
    assert {name: getattr(config, name) for name in expected} == expected
    # saved with a run, and read again
    (tmp_path / "d.yaml").write_text(to_yaml(config.to_plain()))
    assert make_config(read_settings(tmp_path / "d.yaml")) == config
    if ": " in text and "-" not in text.partition(":")[0]:
        name, _, value = text.partition(": ")
        assert make_config(parse_sets([f"{name} = {value}"])) == config


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_settings_file_of_windows(encoding, tmp_path):
    (tmp_path / "c.yaml").write_bytes("data: größe\r\nepochs: 4\r\n".encode(encoding))
    assert read_settings(tmp_path / "c.yaml") == {"data": "größe", "epochs": 4}
    (tmp_path / "c.yaml").write_bytes("data: größe".encode("latin-1"))
    with pytest.raises(UsageError, match="it is not text in UTF-8; save it as such"):
        read_settings(tmp_path / "c.yaml")


def test_photos_are_cut_and_scaled_as_a_later_layer_asks():
    strong = read_recipe("strong")
    given = make_config(strong)
    assert (given.fit, given.crop_pct, given.auto_resize) == ("pad", 0.875, True)
    cut = make_config(strong, {"crop": [200, 100]})
    assert (cut.fit, cut.crop_pct, cut.auto_resize, cut.crop) == (None, 1, False, (200, 100))
    scaled = make_config(strong, {"resize": [64, 32]})
    assert (scaled.fit, scaled.crop_pct, scaled.auto_resize, scaled.resize) == ("pad", 0.875, False, (64, 32))
    weighted = make_config(read_recipe("strong"), {"alpha": {"age": [1, 1, 4]}})
    assert (weighted.class_weight, weighted.alpha) == ("none", {"age": [1, 1, 4]})
    assert make_config(strong, {"fit": "stretch"}).crop_pct == 0.875
    with pytest.raises(UsageError, match="auto_resize has no effect with fit contest"):
        make_config({"fit": "contest", "auto_resize": True})
    with pytest.raises(UsageError, match="crop_pct has no effect with fit contest"):
        make_config({"crop_pct": 0.9, "crop": [200, 100]})
    assert make_config(strong, {"fit": "contest"}).crop_pct == 1
    with pytest.raises(UsageError, match="resize and auto_resize exclude each other"):
        make_config({"fit": "pad", "resize": [64, 32], "auto_resize": True})


def test_what_is_turned_off_takes_its_settings_of_the_layers_below_along():
    whole = make_config(read_recipe("winner"), {"boxes": None})
    assert (whole.boxes, whole.margin, whole.no_face) == (None, 0.3, "whole")
    assert make_config(read_recipe("winner"), {"half_cutmix": 0}).half_shares == (0.5, 0.5)
    with pytest.raises(UsageError, match="margin has no effect without boxes"):
        make_config(read_recipe("winner"), {"boxes": None, "margin": 0.5})
    with pytest.raises(UsageError, match="margin has no effect without boxes"):
        make_config({"boxes": None}, {"margin": 0.5})


@pytest.mark.parametrize("cut", [{"crop": [200, 100]}, {"boxes": "boxes.csv"}])
def test_a_cut_takes_the_fit_of_the_layers_below_along(cut):
    assert make_config(read_recipe("strong"), {"lr": 1e-3}).fit == "pad"
    assert make_config(read_recipe("strong"), cut).fit is None
    with pytest.raises(UsageError, match="has no effect with fit pad"):
        make_config({"fit": "pad", **cut})


def test_a_setting_is_of_a_recipe_that_has_the_same_value():
    assert recipe_of(make_config(read_recipe("report"), {"epochs": 3}), "age_bounds") == " of recipe report"
    assert recipe_of(make_config(read_recipe("report"), {"age_bounds": [30, 57]}), "age_bounds") == ""
    assert recipe_of(make_config(read_recipe("winner")), "boxes") == " of recipe winner"
    assert recipe_of(make_config({"boxes": "mine.csv"}), "boxes") == ""


def test_a_tilde_in_a_path_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    (tmp_path / "s.yaml").write_text("data: ~/my.csv\nimages: ~\nextra: a~b/~/x.csv\narch: ~/x\n")
    made = make_config({"images": "~/photos", **read_settings(tmp_path / "s.yaml")}, parse_sets(["cache_dir=~/c"]))
    assert (made.data, made.images, made.cache_dir) == ("/home/me/my.csv", None, "/home/me/c")
    assert (made.extra, made.arch) == ("a~b/~/x.csv", "~/x")
    assert Config(images="~").images == "/home/me"


def test_numbers_by_class_are_read_from_text_files_and_nested_mappings(tmp_path):
    assert make_config({"per_person": "2"}).per_person == 2
    assert make_config({"per_person": "mask.wear=1, age.60+=2"}).per_person == {"mask.wear": 1, "age.60+": 2}
    assert make_config(parse_sets(["per_person.mask.wear=1"])).per_person == {"mask.wear": 1}
    assert make_config({"draw_weights": "often"}).draw_weights == "often"
    file = tmp_path / "w.yaml"
    file.write_text("age: {60+: 3, 1.5: 2}\nincorrect female 60+: 0.5\n")
    expected = {"age.60+": 3, "age.1.5": 2, "incorrect female 60+": 0.5}
    made = make_config({"draw_weights": str(file)})
    assert made.draw_weights == expected
    assert make_config(made.to_plain()) == made
    file.write_text("")
    for text in (str(file), str(tmp_path / "none.yml")):
        with pytest.raises(UsageError, match="draw weights"):
            make_config({"draw_weights": text})
    for wrong in ("", "mask.wear=", "mask.wear=x", "1,2", "mask.wear=1,mask.wear=1", "1.5", "²"):
        with pytest.raises(UsageError, match="Setting per_person: found"):
            make_config({"per_person": wrong})
