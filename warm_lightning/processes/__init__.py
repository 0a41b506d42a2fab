"""Forward processes, each with two gains, a prior and a last level."""

from warm_lightning.processes.base import Process
from warm_lightning.processes.blurring import BlurringDiffusion
from warm_lightning.processes.cold import IHDM, ColdDiffusion, SoftDiffusion
from warm_lightning.processes.variance_preserving import (
    BlurRate,
    CosineSchedule,
    LinearSchedule,
    LogRate,
    ProgressiveDeblurring,
    QuarticRate,
    Schedule,
    VariancePreserving,
)
from warm_lightning.processes.warm import (
    BlurPath,
    BlurringSchedule,
    ConstantBNR,
    Hot,
    PFGMpp,
    PowerLaw,
    RandomBNR,
    Warm,
)

__all__ = [
    "IHDM",
    "BlurPath",
    "BlurRate",
    "BlurringDiffusion",
    "BlurringSchedule",
    "ColdDiffusion",
    "ConstantBNR",
    "CosineSchedule",
    "Hot",
    "LinearSchedule",
    "LogRate",
    "PFGMpp",
    "PowerLaw",
    "Process",
    "ProgressiveDeblurring",
    "QuarticRate",
    "RandomBNR",
    "Schedule",
    "SoftDiffusion",
    "VariancePreserving",
    "Warm",
]
