"""Other people's attentions and duals, at their best: what ASAP is compared with."""
