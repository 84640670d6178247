"""info: versions, devices, and which operator runs where and why not."""

import importlib.metadata
import platform
import warnings

import torch

import vitkern
from vitkern import dispatch, faults
from vitkern.lab.proving.verify import verify
from vitkern.lab.specimens import specimens
from vitkern.report import table

PACKAGES = ("triton", "numpy", "timm", "transformers", "torchvision", "safetensors")


def add_arguments(parser) -> None:
    del parser


def versions() -> dict[str, str]:
    """Python's and each package's version, "not installed" where it is not."""
    found = {"python": platform.python_version(), "vitkern": vitkern.__version__, "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> list[tuple[torch.device, str]]:
    """The CPU and each visible GPU, with a description."""
    cpu = f"{processor()}, {torch.get_num_threads()} threads"
    found = [(torch.device("cpu"), cpu)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
        found.append((torch.device("cuda", index), detail))
    return found


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def where(device: torch.device, dtype: torch.dtype, op: str) -> tuple[str, list[str]]:
    """("Triton" | "interpreter" | "PyTorch", reasons why no kernel) for ordinary shapes."""
    if dispatch.current_backend() == "torch":
        return "PyTorch", ["the backend is set to torch"]
    tensor = torch.empty(0, dtype=dtype, device=device)
    reasons = dispatch.why_not([tensor], op=op)
    if device.type == "cuda" and not reasons:
        started = start(op, device, dtype)
        reasons = dispatch.why_not([tensor], started, op)
    if reasons:
        return "PyTorch", reasons
    return ("interpreter" if dispatch.INTERPRETED else "Triton"), []


def start(op: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Run an operator forward and backward once, so that what keeps its kernels from starting is known; what else went
    wrong is returned. Right results are the business of ``check``."""
    problem = specimens()[op].check[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", faults.FallbackWarning)
            verify(problem, dtype, device)
    except Exception as error:
        return [f"{op} fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
    return []


def run(arguments) -> int:
    del arguments
    print(f"platform      {platform.platform()}")
    for name, version in versions().items():
        print(f"{name:<13} {version}")
    print(f"backend       {dispatch.current_backend()}")
    found = devices()
    for device, detail in found:
        print(f"{device!s:<13} {detail}")
    if len(found) == 1:
        print(
            "cuda          none: "
            + ("torch sees no GPU" if torch.version.cuda or torch.version.hip else "torch has no GPU build")
        )
    print()
    rows, notes = [], []
    for op in specimens():
        row = [op]
        for device, _ in found:
            place, reasons = where(device, torch.float32, op)
            row.append(place)
            own = [reason for name, reason in faults.faulted(device) if name == op]
            notes += [f"{op + ': ' if r in own else ''}PyTorch on {device}: {r}" for r in reasons]
        rows.append(row)
    print(table(["operator", *(str(device) for device, _ in found)], rows))
    for note in dict.fromkeys(notes):
        print(note)
    print("Kernels take float16, bfloat16 and float32; float64 runs in PyTorch.")
    return 0
