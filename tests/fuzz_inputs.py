"""Files for `tests/fuzz_readers.py`: valid ones, and what was changed in them."""

import dataclasses
import functools
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

Random = random.Random


@dataclasses.dataclass(frozen=True)
class Case:
    """An input.

    Attributes:
        files: contents by name.
        mutated: the name of the one that was changed.
        neighbours: keys of rows that must be read all the same.
        may_be_refused: whether the input may be refused as a whole.
    """

    files: Mapping[str, bytes]
    mutated: str
    neighbours: Sequence[str]
    may_be_refused: bool = False


@functools.cache
def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (9, 7), mode="RGB") -> bytes:
    """A small picture, as a file."""
    rng, file = random.Random(seed), io.BytesIO()
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.randbytes(size[0] * size[1] * bands)
    Image.frombytes(mode, size, pixels).save(file, kind)
    return file.getvalue()


def flip(data: bytes, rng: Random, begin: int = 0, end: int | None = None) -> tuple[bytes, int]:
    """Some bytes changed, removed, doubled or put in; and the first place that was touched."""
    end = len(data) if end is None else end
    first = end
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(begin, max(end, begin + 1))
        first = min(first, place)
        match rng.randrange(6):
            case 0 | 1:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 2:
                special = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0xFE))
                changed[place : place + 4] = bytes([special]) * 4
            case 3:
                del changed[place : place + rng.choice((1, 2, 4, 512))]
            case 4:
                changed[place:place] = changed[place : place + rng.choice((1, 8, 512))]
            case 5:
                changed[place:place] = rng.randbytes(rng.choice((1, 4, 512)))
    if rng.random() < 0.1:
        place = rng.randrange(begin, max(end, begin + 1))
        first = min(first, place)
        del changed[place:]
    return bytes(changed), first


# --- tar

ROWS = 4


def _tar(name: str, rng: Random, format: int = tarfile.GNU_FORMAT) -> tuple[bytes, list[int]]:
    """A shard of four pairs, and where each pair ends."""
    file, ends = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for i in range(ROWS):
            stem = f"{name}-{i}"
            if rng.random() < 0.2:
                stem = f"{'deep/' * 25}{stem}"  # a name too long for one header
            for suffix, data in (("png", picture(i)), ("txt", f"caption {i}".encode())):
                info = tarfile.TarInfo(f"{stem}.{suffix}")
                info.size = len(data)
                if format == tarfile.PAX_FORMAT and rng.random() < 0.3:
                    info.pax_headers = {"comment": "é" * rng.randrange(300)}
                tar.addfile(info, io.BytesIO(data))
            ends.append(file.tell())
    return file.getvalue(), ends


FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100))
FIELDS += ((257, 8), (265, 32), (329, 16), (345, 155))
NUMBERS = (
    b"0",
    b"77777777777",
    b"-1",
    b"\x80" + bytes(11),
    b"\xff" * 12,
    b"\x80\x7f" + b"\xff" * 10,
)
NUMBERS += (b"\x00", b"99999999999", b"00000001000", b"\x80\0\0\0\0\0\0\x01\0\0\0\0", b" 12 \0")
TYPES = b"01234567LKSxgXNMDV\0A?"


def _header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(512)
    for begin, value in ((0, name), (100, b"0000644\0"), (124, size), (156, kind)):
        block[begin : begin + len(value)] = value
    block[257:265] = b"ustar  \0"
    return _summed(block)


def _summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax(rng: Random) -> bytes:
    """A header of records, some of them odd."""
    keys = ("path", "linkpath", "size", "mtime", "GNU.sparse.major", "GNU.sparse.minor", "uid")
    keys += ("GNU.sparse.map", "GNU.sparse.realsize", "GNU.sparse.size", "GNU.sparse.name")
    keys += ("GNU.sparse.numblocks", "GNU.sparse.offset", "hdrcharset", "comment", "x" * 300)
    values = ("0", "1", "-1", "1e999", "nan", "9" * 400, "a" * 5000, "0,512", "0,1,2", "", "\0")
    data = b""
    for _ in range(rng.randrange(1, 6)):
        record = f" {rng.choice(keys)}={rng.choice(values)}\n".encode()
        length = len(record) + len(str(len(record)))
        length = rng.choice((length, length, length, length + 1, 0, 10**9, 10**30))
        data += str(length).encode() + record
    size = b"%011o\0" % len(data)
    if rng.random() < 0.1:
        size = rng.choice(NUMBERS)
    return _header(b"pax", size, rng.choice((b"x", b"g", b"X"))) + data.ljust(
        -len(data) % 512 + len(data), b"\0"
    )


def tar(rng: Random) -> Case:
    """Three shards of which the second is changed."""
    format = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    data, ends = _tar("b", rng, format)
    at = rng.choice((0, *ends[:-1]))
    match rng.randrange(7):
        case 0 | 1:
            data, first = flip(data, rng)
        case 2 | 3:  # a field of a header, with the right checksum
            block = bytearray(data[at : at + 512])
            for _ in range(rng.choice((1, 1, 2))):
                begin, length = rng.choice(FIELDS)
                value = rng.choice((*NUMBERS, rng.randbytes(length), b"\xe9" * length))
                if begin == 156:
                    value = bytes([rng.choice(TYPES)])
                block[begin : begin + length] = value[:length].ljust(length, b"\0")
            data, first = data[:at] + _summed(block) + data[at + 512 :], at
        case 4:  # headers before a member
            more = b"".join(_pax(rng) for _ in range(rng.choice((1, 1, 3, 2000))))
            data, first = data[:at] + more + data[at:], at
        case 5:  # long names of long names
            more = _header(b"././@LongLink", b"%011o\0" % 5, b"L") + b"abcd".ljust(512, b"\0")
            data, first = data[:at] + more * rng.choice((1, 2, 3000)) + data[at:], at
        case _:  # a sparse member of the old kind, perhaps with a map that goes on
            block = bytearray(
                _header(b"b-sparse.png", rng.choice((b"%011o\0" % 512, *NUMBERS)), b"S")
            )
            for place in range(386, 495, 12):
                value = rng.choice((b"%011o\0" % rng.randrange(2000), *NUMBERS))
                block[place : place + 12] = value[:12].ljust(12, b"\0")
            block[482] = rng.randrange(2)
            more = _summed(block) + rng.randbytes(512) * rng.randrange(3)
            data, first = data[:at] + more + data[at:], at
    good_a, _ = _tar("a", Random(0))
    good_c, _ = _tar("c", Random(0))
    whole = sum(end <= first for end in ends)
    before = data[: ends[whole - 1]] if whole else b""
    return Case(
        {"0.tar": good_a, "1.tar": data, "2.tar": good_c},
        "1.tar",
        [*_keys(good_a), *_keys(before + bytes(1024)), *_keys(good_c)],
    )


def _keys(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [name[: -len(".png")] for name in tar.getnames() if name.endswith(".png")]


# --- tables


def _rows(name: str, count: int = 12) -> list[dict[str, object]]:
    return [
        {"key": f"{name}-{i}", "caption": f"caption {i} of a row", "more": f"m{i}"}
        for i in range(count)
    ]


def _csv(rows: Sequence[Mapping[str, object]]) -> list[bytes]:
    lines = [b"key,caption,more\n"]
    for row in rows:
        lines.append(('{key},"{caption}",{more}\n'.format(**row)).encode())
    return lines


def csv(rng: Random) -> Case:
    """Three tables of which the second is changed."""
    rows = _rows("b")
    lines = _csv(rows)
    at = rng.randrange(1, len(lines))
    kept = [row["key"] for i, row in enumerate(rows, 1) if i != at]
    odd = [
        b"odd,caption,m,too,many\n",
        b"odd\n",
        b"odd,caf\xe9,m\n",
        b"odd,\0\0\0,m\n",
        b"odd," + b"x" * rng.choice((200_000, 3_000_000)) + b",m\n",
        b'odd,"' + b"y\n" * 100_000 + b'",m\n',
        b"\n\r\n\r",
        b"odd," + "\U0001f600\u202e".encode() * 1000 + b",m\n",
        b"odd," + b"'" * 70_000 + b",m\n",
        b",,\n",
        b"\xed\xa0\x80,x,y\n",
    ]
    match rng.randrange(4):
        case 0:  # one row is something else
            lines[at] = rng.choice(odd)
        case 1:  # a quote that is never closed, or closed by the next
            lines[at] = b'odd,"never closed,m\n'
            kept = [row["key"] for row in rows[: at - 1]]
        case 2:
            data, first = flip(b"".join(lines), rng)
            ends = [len(b"".join(lines[: i + 1])) for i in range(len(lines))]
            kept = [row["key"] for i, row in enumerate(rows, 1) if ends[i] <= first]
            return _tables("csv", data, kept)
        case _:  # no header, or another
            lines[0] = rng.choice(
                (b"", b"\n\n\xef\xbb\xbf", b"caption,caption\n", rng.randbytes(40) + b"\n")
            )
            kept = []
    return _tables("csv", b"".join(lines), kept)


def _tables(suffix: str, data: bytes, kept: Sequence[object]) -> Case:
    make = {
        "csv": lambda n: b"".join(_csv(_rows(n))),
        "jsonl": lambda n: b"".join(_jsonl(_rows(n))),
    }
    make["parquet"] = lambda n: _parquet(_rows(n))
    files = {
        f"0.{suffix}": make[suffix]("a"),
        f"1.{suffix}": data,
        f"2.{suffix}": make[suffix]("c"),
    }
    others = [str(row["key"]) for name in "ac" for row in _rows(name)]
    return Case(files, f"1.{suffix}", [*others, *map(str, kept)])


def _jsonl(rows: Sequence[Mapping[str, object]]) -> list[bytes]:
    return [json.dumps(row).encode() + b"\n" for row in rows]


def jsonl(rng: Random) -> Case:
    """Three tables of which one line of the second is changed."""
    rows = _rows("b")
    lines = _jsonl(rows)
    at = rng.randrange(len(lines))
    values = (
        "1" * 5000,
        "1e400",
        "-Infinity",
        "null",
        "[]",
        "{}",
        '"\\ud800"',
        '"\\u0000"',
        "true",
    )
    values += ("[" * 100_000, '{"a":' * 50_000, '"' + "z" * 2_000_000 + '"', "1e-400", '["a", 3]')
    values += ('"' + "\\ud83d" * 1000 + '"', '{"bytes": "x"}', "[[]]", '"\\ud83d\\ude00"')
    if rng.random() < 0.5:
        name = rng.choice(("key", "caption", "more", "image", ""))
        other = rng.choice(("key", "caption", "more"))
        line = (
            f'{{"{name}": {rng.choice(values)}, "{other}": {rng.choice(values)}, "caption": "x"}}\n'
        )
        lines[at] = line.encode()
    else:
        body, _ = flip(lines[at][:-1], rng)
        lines[at] = body + b"\n"
    kept = [row["key"] for i, row in enumerate(rows) if i != at]
    return _tables("jsonl", b"".join(lines), kept)


# --- Parquet


def _parquet(rows: Sequence[Mapping[str, object]], **options) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) | {"image": picture(i)} for i, row in enumerate(rows)])
    return _written(table, pq, **options)


def _written(table, pq, **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=4, **options)
    return file.getvalue()


def parquet(rng: Random) -> Case:
    """Three files of which the second is changed: its pages, its footer, or its values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows("b")
    options = {
        "compression": rng.choice(("none", "snappy", "zstd", "gzip", "lz4")),
        "use_dictionary": rng.random() < 0.5,
        "data_page_version": rng.choice(("1.0", "2.0")),
        "version": rng.choice(("1.0", "2.4", "2.6")),
    }
    data = _parquet(rows, **options)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    match rng.randrange(5):
        case 0 | 1:  # a page
            group = rng.randrange(metadata.num_row_groups)
            begin, end = _extent(metadata.row_group(group))
            place = rng.randrange(begin, end)
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 4))):
                changed[rng.randrange(place, min(place + 40, end))] = rng.choice(
                    (0, 255, rng.randrange(256))
                )
            kept = [row["key"] for i, row in enumerate(rows) if i // 4 != group]
            return _tables("parquet", bytes(changed), kept)
        case 2 | 3:  # the footer
            changed, _ = flip(data, rng, footer, len(data))
            if len(changed) == len(data) or rng.random() < 0.5:
                changed = (
                    changed[:-8] + max(len(changed) - footer - 8, 0).to_bytes(4, "little") + b"PAR1"
                )
            return _tables("parquet", changed, [])
    at, column = rng.randrange(len(rows)), rng.choice(("caption", "key", "more"))
    table = pa.Table.from_pylist([dict(row) | {"image": picture(i)} for i, row in enumerate(rows)])
    if rng.random() < 0.5:  # text that is none
        values = [str(row[column]).encode() for row in rows]
        values[at] = rng.choice((b"caf\xe9", b"\xff" * 40, b"\xed\xa0\x80", b"\xc3"))
        binary = pa.array(values, pa.binary())
        text = pa.Array.from_buffers(pa.string(), len(values), binary.buffers())
        table = table.set_column(table.column_names.index(column), column, text)
        kept = [row["key"] for i, row in enumerate(rows) if i != at]
        return _tables("parquet", _written(table, pq, **options), kept)
    far = rng.choice((2**31 - 1, -(2**31), 2**40, -(2**62), 0))
    odd = rng.choice(
        (
            pa.array([far % 2**31] * 12, pa.date32()),
            pa.array([far] * 12, pa.timestamp("us")),
            pa.array([far | 1] * 12, pa.timestamp("s", "Europe/Nowhere")),
            pa.array([123] * 12, pa.time64("ns")),
            pa.array([[1, 2]] * 12, pa.list_(pa.int8())),
            pa.array([{"bytes": 3, "path": 4}] * 12),
            pa.array([[("a", 1)]] * 12, pa.map_(pa.string(), pa.int64())),
            pa.array([float("nan")] * 12),
            pa.array([None] * 12, pa.null()),
            pa.array(["x"] * 12).dictionary_encode(),
            pa.array([b"\xe9"] * 12),
            pa.array([True] * 12),
        )
    )
    column = rng.choice(("caption", "key", "more", "image"))
    table = table.set_column(table.column_names.index(column), column, odd)
    try:
        data = _written(table, pq, **options)
    except (pa.ArrowException, OverflowError):  # what can't be written
        return _tables("parquet", data, [row["key"] for row in rows])
    # A type that other files don't have may be refused, in one line.
    return dataclasses.replace(_tables("parquet", data, []), may_be_refused=True)


def _extent(group) -> tuple[int, int]:
    begins, ends = [], []
    for i in range(group.num_columns):
        column = group.column(i)
        begin = min(x for x in (column.dictionary_page_offset, column.data_page_offset) if x)
        begins.append(begin)
        ends.append(begin + column.total_compressed_size)
    return min(begins), max(ends)


TABLES: Mapping[str, Callable[[Random], Case]] = {
    "tar": tar,
    "csv": csv,
    "jsonl": jsonl,
    "parquet": parquet,
}
