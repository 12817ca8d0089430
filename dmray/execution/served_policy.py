"""The loader that MLflow models of dmray 0.1 name (`loader_module` in their MLmodel file)."""

from dmray.inference.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
