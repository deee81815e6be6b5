"""A real S3 server on this machine."""

import pytest


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket of a server that speaks S3."""
    server_module = pytest.importorskip("moto.server", reason="needs the extra test-s3")
    s3fs = pytest.importorskip("s3fs", reason="needs the extra test-s3")
    import boto3

    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.close()
        s3fs.S3FileSystem.clear_instance_cache()  # those of another module's server
        yield "s3://bucket"
    server.stop()
