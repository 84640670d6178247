"""Offsets beyond 2^31 through every pointer: `offsets`, made of `offset_case` and the lists of `offset_cases`
(`offset_attention`, `offset_sparse`, `offset_local`); `offset_coverage` knows which pointers were missed.
"""
