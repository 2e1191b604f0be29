"""Types of columns: images, text, numbers."""

import pyarrow as pa


def image_fields(kind: pa.StructType) -> dict[str, pa.DataType]:
    """Return the fields of a struct that hold the image or its path."""
    fields = {name: kind.field(name).type for name in ("bytes", "path") if _has(kind, name)}
    tests = {"bytes": is_binary, "path": is_text}
    return {
        name: each
        for name, each in fields.items()
        if pa.types.is_null(each) or tests[name](plain_type(each))
    }


def _has(kind: pa.StructType, name: str) -> bool:
    return bool(kind.get_field_index(name) >= 0)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, of which a dictionary may encode the column."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_binary(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def is_number(kind: pa.DataType) -> bool:
    return any(
        test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    )
