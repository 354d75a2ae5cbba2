"""Where learners that earlier versions exported find their class `Counted`."""

from fastmask.system.randomness import Counted as Counted
