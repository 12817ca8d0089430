"""Policies as folders for others: files that act without dmray, weights, and a model card."""

from dmray.exports.folder import ALL_FORMATS, Export, export

__all__ = ["ALL_FORMATS", "Export", "export"]
