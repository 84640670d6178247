"""What no compiled kernel may need."""

from vitkern.lab.compiling import budget


def exceeded(arch: int, *, shared: int, spills: int, stack: int, widest_load: int, half_input: bool) -> list[str]:
    """How a kernel goes beyond the limits of an architecture, a line each.

    ``shared``: bytes per program; ``spills``: accesses; ``stack``: bytes; ``widest_load``: bits per thread;
    ``half_input``: some pointer argument is fp16 or bf16.
    """
    found = []
    limit = budget.LIMITS[arch].shared_block
    if shared > limit:
        found.append(f"needs {shared} bytes of shared memory; {budget.name_of(arch)} gives {limit}")
    if spills or stack:
        found.append(f"spills: {spills} accesses, {stack} bytes of stack")
    if half_input and widest_load < 128:
        found.append(f"widest global load is {widest_load} bits")
    return found
