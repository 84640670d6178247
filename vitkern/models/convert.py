"""A state dict of another library -> ours, by the table of its family: names, and projections that are one here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitkern.models.names import few
from vitkern.models.tables import FAMILIES, PROJECTIONS, Table, Target


def convert_state_dict(state_dict: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """A state dict under our names. Separate q, k and v projections are joined; nothing else is computed.

    Args:
        state_dict: as the other library saves it.
        family: a key of `FAMILIES`, for example "transformers_vit"; `detect_family` names it.

    Raises:
        ValueError: an unknown family, keys that its table does not have or that mean the same, or projections that do
            not join.
    """
    if family not in FAMILIES:
        raise ValueError(f"convert_state_dict: unknown family: got {family!r}; expected one of {', '.join(FAMILIES)}.")
    table, renamed, unknown, twice = FAMILIES[family], {}, [], []
    for key, value in state_dict.items():
        known, name = _rename(re.sub(f"^{table.prefix}", "", key), table) if isinstance(key, str) else (False, None)
        if not known:
            unknown.append(key)
        elif name in renamed:
            twice.append(key)
        elif name is not None:
            renamed[name] = value
    for what, keys in (("these are no names of", unknown), ("two names mean one tensor of", twice)):
        if keys:
            raise ValueError(
                f"convert_state_dict: {what} {family}: got {few(keys)}; "
                "expected a state dict of that library's unchanged model."
            )
    return _all_classes(_split_bias(_join_projections(renamed, family), family), family)


def _rename(key: str, table: Table) -> tuple[bool, str | None]:
    """(the table has the key, its new name; None drops it)."""
    for pattern, target in table.stem:
        if found := re.fullmatch(pattern, key):
            return True, None if target is None else _expand(found, target)
    if start := re.match(table.block[0], key):
        for pattern, target in table.rows:
            if found := re.fullmatch(pattern, key[start.end() :]):
                return True, _expand(start, table.block[1]) + _expand(found, target)
    return False, None


def _expand(found: re.Match, target: Target) -> str:
    return target(found) if callable(target) else found.expand(target)


def _join_projections(renamed: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """``attn.q``, ``attn.k``, ``attn.v`` -> ``attn.qkv``; SwinV2 keeps its biases of q and v apart."""
    out, joined = {}, PROJECTIONS.get(family, "qkv")
    for name, value in renamed.items():
        part = re.fullmatch(r"(.*attn\.)([qkv])\.(weight|bias)", name)
        if part is None or part[2] not in joined:
            out[name] = value
        elif family == "transformers_swinv2" and part[3] == "bias":
            out[f"{part[1]}{part[2]}_bias"] = value
        else:
            names = [f"{part[1]}{letter}.{part[3]}" for letter in joined]
            missing = [wanted for wanted in names if wanted not in renamed]
            if missing:
                raise ValueError(
                    f"convert_state_dict: a projection is missing: got no source of {missing[0]}; "
                    "expected q, k and v of each block."
                )
            if part[2] == joined[0]:
                out[f"{part[1]}{joined}.{part[3]}"] = _joined([renamed[wanted] for wanted in names], names)
    return out


def _joined(parts: list[Tensor], names: list[str]) -> Tensor:
    if len({(part.shape, part.dtype) for part in parts}) > 1 or parts[0].dim() == 0:
        got = ", ".join(f"{tuple(part.shape)} {part.dtype}".replace("torch.", "") for part in parts)
        raise ValueError(
            f"convert_state_dict: a projection does not join: got {got} for {names[0]} and what follows it; "
            "expected q, k and v of one shape and dtype."
        )
    return torch.cat(parts)


def _split_bias(named: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """torchvision's SwinV2 keeps a bias for k that its forward pass ignores."""
    if family != "torchvision_swinv2":
        return named
    out = {}
    for name, value in named.items():
        if name.endswith("attn.qkv.bias"):
            if value.dim() != 1 or len(value) % 3:
                raise ValueError(
                    f"convert_state_dict: a bias does not split: got {tuple(value.shape)} for {name}; "
                    "expected those of q, k and v, one after another."
                )
            q, _, v = value.chunk(3)
            out[name.replace("qkv.bias", "q_bias")], out[name.replace("qkv.bias", "v_bias")] = q.clone(), v.clone()
        else:
            out[name] = value
    return out


def _all_classes(named: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """transformers' detector may have one layer of classes for all layers of its decoder, and save it once."""
    if family != "transformers_deformable_detr":
        return named
    layers = {found[1] for name in named if (found := re.match(r"model\.decoder\.layers\.(\d+)\.", name))}
    once = [(leaf, named[f"class_embed.0.{leaf}"]) for leaf in ("weight", "bias") if f"class_embed.0.{leaf}" in named]
    return {f"class_embed.{layer}.{leaf}": value for layer in layers for leaf, value in once} | named
