"""Where a vision transformer looked: attention, rollout, gradient-weighted and layer-wise relevance, as heat maps over
the image. `explanation` has the public function."""
