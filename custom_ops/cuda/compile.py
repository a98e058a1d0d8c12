"""Compiles the GPU kernels for every architecture and embeds them in an assembly file. Needs no GPU.

    python compile.py FOLDER

The compiler is NVRTC 12: `pip install nvidia-cuda-nvrtc-cu12`. Without it, the file holds an empty table, and the
library has only CPU kernels.
"""

import ctypes
import hashlib
import importlib.util
import re
import sys
from pathlib import Path

SOURCES = Path(__file__).parent
# Compute capabilities times ten. Machine code also runs on later GPUs of the same generation.
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
PTX_OF, PTX_VERSION = 70, "7.0"  # for all other GPUs from 7.0 on; drivers of CUDA 11 and newer compile the PTX
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--fmad=false")
# NVRTC has no C++ headers. These are the parts of two headers that the kernels use.
HEADERS = {
    "cstdint": "#pragma once\nusing int16_t = short; using int32_t = int; using int64_t = long;\n"
    "using uint16_t = unsigned short; using uint32_t = unsigned; using uint64_t = unsigned long;\n",
    "cstring": "#pragma once\nnamespace std { using ::memcpy; }\n",
}


def find_nvrtc() -> ctypes.CDLL | None:
    """Loads NVRTC 12 from its wheel or from the linker's search path; returns None if neither has it."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder, "cuda_nvrtc", "lib") for folder in spec.submodule_search_locations] if spec else []
    for name in [*(folder / "libnvrtc.so.12" for folder in folders), "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    return None


def compile_kernels(nvrtc: ctypes.CDLL, architecture: int, kind: str) -> bytes:
    """Compiles the kernels for one architecture.

    Args:
        nvrtc: The compiler's library.
        architecture: Compute capability times ten, such as 86.
        kind: "CUBIN" for machine code, "PTX" for code that a driver compiles for any later GPU.

    Returns:
        The compiled code.

    Raises:
        RuntimeError: If the kernels do not compile; the message holds the compiler's log.
    """

    def bytes_of(size_function, function):
        size = ctypes.c_size_t()
        getattr(nvrtc, size_function)(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, function)(program, buffer)
        return buffer.raw

    texts = (ctypes.c_char_p * len(HEADERS))(*(text.encode() for text in HEADERS.values()))
    names = (ctypes.c_char_p * len(HEADERS))(*(name.encode() for name in HEADERS))
    program, main = ctypes.c_void_p(), SOURCES / "kernels.cu"
    created = (ctypes.byref(program), main.read_bytes(), str(main).encode(), len(HEADERS), texts, names)
    if nvrtc.nvrtcCreateProgram(*created) != 0:
        raise RuntimeError(f"NVRTC cannot open {main}.")
    target = f"--gpu-architecture={'sm' if kind == 'CUBIN' else 'compute'}_{architecture}"
    options = [option.encode() for option in (target, f"--include-path={SOURCES}", *OPTIONS)]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        log = bytes_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode()
        raise RuntimeError(f"The kernels do not compile for sm_{architecture}:\n{log}")
    return bytes_of(f"nvrtcGet{kind}Size", f"nvrtcGet{kind}")


def known(nvrtc: ctypes.CDLL) -> list[int]:
    """Returns the entries of `ARCHITECTURES` that this NVRTC supports; versions before 12.8 do not support all."""
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(numbers)
    return [number for number in ARCHITECTURES if number in numbers]


def compile_all(nvrtc: ctypes.CDLL) -> dict[str, bytes]:
    """Compiles the kernels for all architectures.

    Args:
        nvrtc: The compiler's library.

    Returns:
        The compiled images by name: machine code ("sm_70", ...), then PTX ("compute_70").
    """
    images = {f"sm_{number}": compile_kernels(nvrtc, number, "CUBIN") for number in known(nvrtc)}
    missing = [f"sm_{number}" for number in ARCHITECTURES if f"sm_{number}" not in images]
    if missing:
        print(f"kerasdet: {', '.join(missing)} get only PTX, because NVRTC is older than 12.8. Upgrade NVRTC.")
    return {**images, f"compute_{PTX_OF}": lowered(compile_kernels(nvrtc, PTX_OF, "PTX"))}


def lowered(ptx: bytes) -> bytes:
    """Lowers the version of PTX, so that drivers older than the compiler accept it.

    The function also removes the only directive that needs a newer version. It is a hint for optimisation.
    """
    ptx = re.sub(rb"(?m)^.*\.pragma \"used_bytes_mask.*\n", b"", ptx)
    return re.sub(rb"(?m)^\.version .*$", f".version {PTX_VERSION}".encode(), ptx)


def assembly(files: dict[str, Path]) -> str:
    """Returns assembly code that embeds the images and defines their table, `kerasdet_cuda_images`.

    A row of the table is (is PTX, architecture, address); a row of zeros ends the table.

    Args:
        files: Paths of the images by name, such as "sm_70" or "compute_70".
    """
    rows = [f".quad {int(name.startswith('compute'))}, {name.split('_')[1]}, {name}" for name in files]
    blobs = [f'.balign 64\n{name}: .incbin "{path}"' for name, path in files.items()]
    table = ['.section .data.rel.ro, "aw"', ".balign 8", ".globl kerasdet_cuda_images", ".hidden kerasdet_cuda_images"]
    data = ["kerasdet_cuda_images:", *rows, ".quad 0, 0, 0", '.section .rodata, "a"', *blobs]
    return "\n".join([*table, *data, '.section .note.GNU-stack, "", %progbits', ""])


def fingerprint(nvrtc: ctypes.CDLL | None) -> str:
    """Computes a digest of everything that the images depend on: all sources and the compiler's version."""
    version = (ctypes.c_int * 2)()
    if nvrtc is not None:
        nvrtc.nvrtcVersion(ctypes.byref(version, 0), ctypes.byref(version, ctypes.sizeof(ctypes.c_int)))
    files = [SOURCES.parent / "half.h", *sorted(file for file in SOURCES.glob("*") if file.is_file())]
    return hashlib.sha256(b"".join([bytes(version), *(file.read_bytes() for file in files)])).hexdigest()


def main() -> None:
    """Writes FOLDER/images.S and the images, unless they are up to date."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    nvrtc, files, result = find_nvrtc(), {}, folder / "images.S"
    if nvrtc is None and result.exists() and ".incbin" in result.read_text():
        sys.exit("kerasdet: NVRTC 12 compiled these kernels but is missing: pip install nvidia-cuda-nvrtc-cu12.")
    if nvrtc is None:
        print("kerasdet: builds no GPU kernels, because NVRTC 12 is missing (pip install nvidia-cuda-nvrtc-cu12).")
    first_line = f"// {fingerprint(nvrtc)}\n"
    if result.exists() and result.read_text().startswith(first_line):
        return
    try:
        images = compile_all(nvrtc) if nvrtc else {}
    except RuntimeError as error:
        sys.exit(f"kerasdet: {error}")
    for name, image in images.items():
        files[name] = folder / name
        files[name].write_bytes(image)
    result.write_text(first_line + assembly(files))


if __name__ == "__main__":
    main()
