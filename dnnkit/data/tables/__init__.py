"""Tables of one's own: read strictly, encoded as decided once in training, and again for every later file."""

from dnnkit.data.tables.arrow import read_parquet
from dnnkit.data.tables.comma import MISSING, read_csv
from dnnkit.data.tables.deciding import Question
from dnnkit.data.tables.encoding import EncodedRows, TableEncoding, encode_file
from dnnkit.data.tables.files import located
from dnnkit.data.tables.source import table_source
from dnnkit.data.tables.table import Table

__all__ = [
    "MISSING",
    "EncodedRows",
    "Question",
    "Table",
    "TableEncoding",
    "encode_file",
    "located",
    "read_csv",
    "read_parquet",
    "table_source",
]
