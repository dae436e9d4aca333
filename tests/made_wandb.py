"""A stub of Weights & Biases, as far as it is used: records what it is asked for."""

import types


class Wandb(types.ModuleType):
    """Takes the place of the package."""

    def __init__(self, fails=None):
        super().__init__("wandb")
        self.calls, self._fails = [], fails

    def init(self, **options):
        self.calls.append(("init", options))
        if self._fails:
            raise self._fails
        return self

    def Settings(self, **values):
        return values

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, (args, options)))

    def called(self, name):
        return [call for called, call in self.calls if called == name]
