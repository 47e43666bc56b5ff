"""Builders of derived models: files that the store makes from other verified files.

A builder is `build(inputs, output) -> None`: `inputs` maps manifest entry names to verified local
paths, `output` is a temporary path that the builder must fill completely. The store hashes the file,
renames it into place and notes the hashes of inputs and output beside it, so a builder never handles
caching. The same inputs must give the same bytes: no time stamps, no unseeded randomness. A builder
raises `ModelStoreError` for inputs that it cannot use.

When a builder's result changes, raise `builder_version` in configs/models.toml: existing files are
then rebuilt. Heavy imports belong inside the builder functions, so that listing models stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Builder = Callable[[Mapping[str, Path], Path], None]

BUILDERS: dict[str, Builder] = {}


def _yunet_dynamic(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.onnx_rewrite import build_yunet_dynamic

    build_yunet_dynamic(inputs, output)


def _for_cpu(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.onnx_rewrite import build_for_cpu

    build_for_cpu(inputs, output)


BUILDERS["yunet_dynamic"] = _yunet_dynamic
BUILDERS["for_cpu"] = _for_cpu


def _mobilefacenet(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.mobilefacenet import build_mobilefacenet

    build_mobilefacenet(inputs, output)


BUILDERS["mobilefacenet"] = _mobilefacenet


def _facenet(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.facenet import build_facenet

    build_facenet(inputs, output)


def _inception(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.inception import build_inception

    build_inception(inputs, output)


def _lpips(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.lpips import build_lpips

    build_lpips(inputs, output)


BUILDERS["facenet"] = _facenet
BUILDERS["inception"] = _inception
BUILDERS["lpips"] = _lpips


def _synthesis_256(inputs: Mapping[str, Path], output: Path) -> None:
    import onnx
    from safetensors.numpy import load_file

    from keyface.engines import generator_ir, generator_onnx

    weights = generator_ir.synthesis_weights(
        inputs["generator_ir_synthesis_xml"], inputs["generator_ir_synthesis_bin"]
    )
    head = {name: array.astype("float32") for name, array in load_file(str(inputs["head256"])).items()}
    onnx.save(generator_onnx.synthesis_256(weights, head), str(output))


def _synthesis_1024(inputs: Mapping[str, Path], output: Path) -> None:
    import onnx

    from keyface.engines import generator_ir, generator_onnx

    weights = generator_ir.synthesis_weights(
        inputs["generator_ir_synthesis_xml"], inputs["generator_ir_synthesis_bin"]
    )
    onnx.save(generator_onnx.synthesis_1024(weights), str(output))


def _mapping(inputs: Mapping[str, Path], output: Path) -> None:
    import onnx

    from keyface.engines import generator_ir, generator_onnx

    layers = generator_ir.mapping_layers(
        inputs["generator_ir_mapping_xml"], inputs["generator_ir_mapping_bin"]
    )
    onnx.save(generator_onnx.mapping(layers), str(output))


def _from_tflite(inputs: Mapping[str, Path], output: Path) -> None:
    from keyface.engines.tflite_onnx import build_from_tflite

    build_from_tflite(inputs, output)


BUILDERS["from_tflite"] = _from_tflite
BUILDERS["synthesis_256"] = _synthesis_256
BUILDERS["synthesis_1024"] = _synthesis_1024
BUILDERS["mapping"] = _mapping
