"""Offsets beyond 2^31 through every pointer: `offsets`, made of `offset_case`; `offset_coverage` knows which pointers
were missed.
"""
