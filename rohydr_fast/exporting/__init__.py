"""A trained model as one program for clips that all have the same modalities: `torch.export`, and an ONNX file.

A graph can hold neither Philox nor a choice that depends on data. So the noise is an input (`draw_noise` gives what
`RoHyDR.recover` would draw), and the set of available modalities is fixed: a device with three sensors has a program
for each set that may be left. What is written has been run and compared with the model before.
"""

from .files import TOLERANCE, Exported, save_onnx, save_program
from .program import Deployed, draw_noise, export_program

__all__ = ["TOLERANCE", "Deployed", "Exported", "draw_noise", "export_program", "save_onnx", "save_program"]
