"""From a sweep file to its trials, their cost and their duration. Imports no Ray, and torch only in `measuring`."""
