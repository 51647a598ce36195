"""The benchmark: cells, the standard finetuning recipe, evaluation, records."""
