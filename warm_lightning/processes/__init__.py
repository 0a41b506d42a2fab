"""Forward processes, each with two gains, a prior and a last level."""

from warm_lightning.processes.base import Process
from warm_lightning.processes.blurring import BlurringDiffusion
from warm_lightning.processes.cold import IHDM, ColdDiffusion, SoftDiffusion
from warm_lightning.processes.coloured import (
    BlurredNoise,
    Colour,
    ColouredNoise,
    CorrelatedNoise,
    DataColour,
    PowerBand,
)
from warm_lightning.processes.flow import FlowMatching, HeatDissipation, LowPassFlowMatching
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
    "BlurredNoise",
    "BlurringDiffusion",
    "BlurringSchedule",
    "ColdDiffusion",
    "Colour",
    "ColouredNoise",
    "ConstantBNR",
    "CorrelatedNoise",
    "CosineSchedule",
    "DataColour",
    "FlowMatching",
    "GaussianKernel",
    "HeatDissipation",
    "Hot",
    "LinearSchedule",
    "LogRate",
    "LowPassFlowMatching",
    "PFGMpp",
    "PowerBand",
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
