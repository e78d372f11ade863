"""boto3 as a user of S3 has it: `python s3_client.py URL STEP`, in the environment of tests/s3_server.py.

Prints what it saw as JSON. Each step is one habit of the SDK: multipart uploads in parallel, checksums in trailers,
conditional and ranged reads, presigned URLs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import urllib.request
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

MEBI = 1024 * 1024
SIZE = 8 * MEBI
# A name that is written with percent signs in a target, and with a slash.
KEY = "a folder/ä+b%2f.bin"


def client(url: str) -> Any:
    how = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=60, proxies={})
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, config=how, **keys)


def multipart(s3: Any) -> dict[str, Any]:
    """8 MiB in parts of 5 MiB, several at a time, and back in the same way."""
    data = os.urandom(SIZE)
    config = TransferConfig(multipart_threshold=5 * MEBI, multipart_chunksize=5 * MEBI, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(data), "bucket", KEY, Config=config)
    got = io.BytesIO()
    s3.download_fileobj("bucket", KEY, got, Config=config)
    head = s3.head_object(Bucket="bucket", Key=KEY)
    return {"same": got.getvalue() == data, "length": head["ContentLength"], "parts": head["ETag"].rstrip('"').rpartition("-")[2]}


def single(s3: Any) -> dict[str, Any]:
    """One PUT of 8 MiB, with Expect: 100-continue; ranges, conditions and listing."""
    data = os.urandom(SIZE)
    put = s3.put_object(Bucket="bucket", Key=KEY, Body=data, Metadata={"a": "b"}, ContentType="image/png")
    got = s3.get_object(Bucket="bucket", Key=KEY)
    part = s3.get_object(Bucket="bucket", Key=KEY, Range="bytes=1000-1999")
    try:
        s3.get_object(Bucket="bucket", Key=KEY, IfNoneMatch=put["ETag"])
        unchanged = 200
    except ClientError as error:
        unchanged = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return {
        "same": got["Body"].read() == data,
        "etag": put["ETag"].strip('"') == hashlib.md5(data).hexdigest(),
        "type": got["ContentType"],
        "metadata": got["Metadata"],
        "part": part["Body"].read() == data[1000:2000],
        "range": part["ContentRange"],
        "unchanged": unchanged,
        "keys": [one["Key"] for one in s3.list_objects_v2(Bucket="bucket", Prefix="a folder/")["Contents"]],
    }


def presigned(s3: Any) -> dict[str, Any]:
    """By a client that knows nothing of S3."""
    urls = {name: s3.generate_presigned_url(f"{name}_object", {"Bucket": "bucket", "Key": KEY}) for name in ("put", "get")}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    # Without a type urllib says that it is a form, which moto takes out of the body.
    request = urllib.request.Request(urls["put"], b"signed", {"Content-Type": "text/plain"}, method="PUT")
    put = opener.open(request, timeout=60)
    return {"status": put.status, "body": opener.open(urls["get"], timeout=60).read().decode()}


def missing(s3: Any) -> dict[str, Any]:
    """Errors are XML documents, which the SDK makes exceptions of."""
    try:
        s3.get_object(Bucket="bucket", Key="none")
    except ClientError as error:
        return {"code": error.response["Error"]["Code"], "status": error.response["ResponseMetadata"]["HTTPStatusCode"]}
    return {}


def main(url: str, step: str) -> None:
    s3 = client(url)
    s3.create_bucket(Bucket="bucket")
    print(json.dumps({"multipart": multipart, "single": single, "presigned": presigned, "missing": missing}[step](s3)))


if __name__ == "__main__":
    main(*sys.argv[1:])
