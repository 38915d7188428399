"""Earlier name of :mod:`ssl_vivit.encoders.onnx`, kept for existing code."""

import sys

from ssl_vivit.encoders.onnx import export_graph, export_onnx, main

__all__ = ["export_graph", "export_onnx", "main"]

if __name__ == "__main__":
    sys.exit(main())
