"""How the signal travels through a network, and what that means."""

from dnnkit.diagnostics.probe import MEASURES, MOST_SAMPLES, LayerSignal, as_metrics, evenly_spaced, probe
from dnnkit.diagnostics.selu import Condition, selu_conditions, selu_line
from dnnkit.diagnostics.verdicts import Verdict, verdicts

__all__ = [
    "MEASURES",
    "MOST_SAMPLES",
    "Condition",
    "LayerSignal",
    "Verdict",
    "as_metrics",
    "evenly_spaced",
    "probe",
    "selu_conditions",
    "selu_line",
    "verdicts",
]
