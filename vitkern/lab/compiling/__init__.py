"""Kernels compiled ahead of time: `compile` (`layer`, `matrix`, `workers`), what they need (`compiled`: `sass`,
`amdgcn`), against `golden` figures with `exceptions`, and what that costs (`budget`, `work`, `estimate`).
"""
