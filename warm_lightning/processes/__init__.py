"""Forward processes: two gains, a prior and a last level each."""

from warm_lightning.processes.base import Process
from warm_lightning.processes.paths import ConstantBNR, Path, PowerLaw, RandomBNR
from warm_lightning.processes.warm import Hot, Warm

__all__ = ["ConstantBNR", "Hot", "Path", "PowerLaw", "Process", "RandomBNR", "Warm"]
