"""Forward processes, each with two gains, a prior and a last level."""

from warm_lightning.processes.base import Process
from warm_lightning.processes.blurring import BlurringDiffusion
from warm_lightning.processes.cold import IHDM, ColdDiffusion, SoftDiffusion
from warm_lightning.processes.variance_preserving import (
    BlurKernel,
    BlurRate,
    CosineSchedule,
    GaussianKernel,
    LinearSchedule,
    LogRate,
    ProgressiveDeblurring,
    QuarticRate,
    SampledKernel,
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
    "BlurKernel",
    "BlurPath",
    "BlurRate",
    "BlurringDiffusion",
    "BlurringSchedule",
    "ColdDiffusion",
    "ConstantBNR",
    "CosineSchedule",
    "GaussianKernel",
    "Hot",
    "LinearSchedule",
    "LogRate",
    "PFGMpp",
    "PowerLaw",
    "Process",
    "ProgressiveDeblurring",
    "QuarticRate",
    "RandomBNR",
    "SampledKernel",
    "Schedule",
    "SoftDiffusion",
    "VariancePreserving",
    "Warm",
]
