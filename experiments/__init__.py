"""Real runs: a small CNN and a Pythia-like language model, trained under any schedule and measured along the way.

Importing the room is light; torch and its kin are imported when a run starts (``pip install 'riverval[real]'``).
"""
