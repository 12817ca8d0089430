"""From a sweep file to its trials, what they cost and how long they take. Pure and light: no torch, no Ray."""
