from types import SimpleNamespace

import pytest

from fastmask.config import make_config
from fastmask.run.directory import resume_config
from fastmask.system.errors import FastmaskError
from fastmask.system.text import duration
from fastmask.training import compiling
from fastmask.training.compiling import choose_compile

FOLDS = 2


class Machine:
    """One on which a run takes `plain` seconds, or `compiled`; a trial takes 5 s, compiling 100 s first, then 20 s."""

    def __init__(self, plain, compiled, refit=0):
        self.seconds, self.now, self.tried, self.refit = {"off": plain, "on": compiled}, 0.0, [], refit

    def rehearse(self, plan, folds):
        assert folds == [0, 1]
        kind = plan.config.compile
        self.now += 5 + (0 if kind == "off" else 20 if kind in self.tried else 100)
        self.tried.append(kind)
        if self.seconds[kind] is None:
            raise RuntimeError("no C++.\nTry again.")
        return SimpleNamespace(run_seconds=self.seconds[kind], folds=FOLDS, refit=self.refit)


@pytest.fixture
def chosen(plan_of, monkeypatch):
    """Chooses on a machine; returns the choice, what was said, and what was tried."""
    monkeypatch.setattr(compiling, "check_compiler", lambda device: None)

    def choose(plain, compiled, **settings):
        machine, said = Machine(plain, compiled, settings.get("refit", 0)), []
        monkeypatch.setattr(compiling, "rehearse", machine.rehearse)
        monkeypatch.setattr(compiling, "time", SimpleNamespace(monotonic=lambda: machine.now))
        plan = choose_compile(plan_of(**{"compile": "auto", **settings}), [0, 1], said.append)
        return plan.config.compile, said, machine.tried

    return choose


# 20 s at the start of each fold, and a tenth of the time must be saved
@pytest.mark.parametrize(("compiled", "wanted"), [(850, "on"), (859, "on"), (861, "off"), (1500, "off")])
def test_it_compiles_where_that_makes_the_run_shorter(chosen, compiled, wanted):
    choice, said, tried = chosen(1000, compiled)
    assert (choice, tried) == (wanted, ["off", "on", "on"])
    assert said == [
        f"--compile auto: {wanted}: the run would take {duration(compiled + 40)} compiled, 17 min otherwise; compiling "
        "took 100 s, and takes 20 s at the start of each fold"
    ]
    # the network of a refit is compiled, too
    assert chosen(1000, compiled, refit=1)[0] == "off"


def test_within_a_time_limit_it_means_more_epochs(chosen):
    assert chosen(5000, 2500, minutes=30)[0] == "on"


@pytest.mark.parametrize("settings", [{}, {"minutes": 9}])
def test_a_short_run_is_not_compiled(chosen, settings):
    choice, said, tried = chosen(5000 if settings else 540, 1, **settings)
    assert (choice, tried) == ("off", ["off"])
    assert said == ["--compile auto: off, since the run takes 9 min"]


def test_a_network_that_cannot_be_compiled_is_not(chosen):
    choice, said, _ = chosen(1000, None)
    assert (choice, said) == ("off", ["--compile auto: off: no C++. Try again"])


def test_a_run_that_is_resumed_keeps_the_choice(finished_run):
    assert resume_config(make_config({"compile": "auto"}), finished_run.path, has_table=True).compile == "off"


def test_without_a_compiler_it_is_off(chosen, monkeypatch):
    def refuse(device):
        raise FastmaskError("torch cannot compile here (no c++); install a C++ compiler.")

    monkeypatch.setattr(compiling, "check_compiler", refuse)
    choice, said, tried = chosen(1000, 1)
    assert (choice, tried) == ("off", ["off"])
    assert said == ["--compile auto: off: torch cannot compile here (no c++); install a C++ compiler"]


@pytest.mark.parametrize("value", ["on", "off"])
def test_what_is_given_is_not_measured(chosen, monkeypatch, value):
    monkeypatch.setattr("fastmask.training.setup.check_compiler", lambda device: None)
    assert chosen(1000, 1, compile=value) == (value, [], [])


def test_yaml_reads_on_and_off_as_true_and_false():
    config = make_config({"compile": True, "cache": False})
    assert (config.compile, config.cache) == ("on", "off")
