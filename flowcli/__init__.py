"""flowcli: learn a probability density from a table; score, sample and explain it.

model = flowcli.fit("maf-affine", frame)      # or a path, or a dict
model.log_prob(frame); model.score(frame); model.sample(1000)
model.save("model.safetensors"); flowcli.load("model.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "fit", "load"]

if TYPE_CHECKING:
    from flowcli.model import Model
    from flowcli.training import fit

    load = Model.load


def __getattr__(name: str) -> Any:
    """Import the heavy parts when they are first asked for (PEP 562)."""
    if name == "fit":
        from flowcli.training import fit

        return fit
    if name in ("Model", "load"):
        from flowcli.model import Model

        return Model if name == "Model" else Model.load
    raise AttributeError(f"module 'flowcli' has no attribute '{name}'")
