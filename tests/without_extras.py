"""Imported first, it hides what only an extra brings, as if `pip install fastmask` had been all."""

import sys
from importlib.machinery import PathFinder
from importlib.metadata import distribution, packages_distributions
from re import sub

from packaging.requirements import Requirement


def normalized(name):
    return sub(r"[-_.]+", "-", name).lower()


def needed(name, extras=(), known=None):
    """The distributions that one needs, with some of its extras: {name: extras} at any depth."""
    known = {} if known is None else known
    name = normalized(name)
    extras = {normalized(extra) for extra in extras}
    if name in known and extras <= known[name]:
        return known
    known[name] = extras | known.get(name, set())
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in known[name] or {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments):
            needed(requirement.name, requirement.extras, known)
    return known


base = set(needed("fastmask"))
hidden = {
    module for module, owners in packages_distributions().items() if not base & {normalized(owner) for owner in owners}
}


class BaseFinder(PathFinder):
    """Python's own finder of modules on the path, which finds none that is hidden."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in hidden else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = BaseFinder
