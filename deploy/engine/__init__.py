"""From an ONNX file to a small, fast, reproducible TensorRT plan: `peoplecounter engine …`."""
