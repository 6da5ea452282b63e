"""The architectures, by name. Adding one: subclass `Architecture` (`ImageModel`, `TextModel`) and list it here.

torch and transformers are imported where a model is built, so that reading the registry is light.
"""

from __future__ import annotations

from .architecture_base import Architecture
from .models_images import CNN, CNNB, CNNC, CNND, MLP, Mixer, ViT
from .models_text import LM, LSTM, SIZES, neox

__all__ = ["ARCHITECTURES", "SIZES", "Architecture", "neox"]

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (CNN(), CNNB(), CNNC(), CNND(), MLP(), ViT(), Mixer(), LM(), LSTM())
}
"""What ``--arch`` takes."""
