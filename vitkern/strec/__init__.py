"""Sequential recommendation with STRec: from an interaction log to trained models, metrics and recommendations."""
