"""Token budgets: the integer program and the rules that decide how many tokens each block keeps."""
