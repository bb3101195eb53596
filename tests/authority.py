"""A certificate authority for tests, made with openssl: certificates that are right, expired, or of somebody else."""

import subprocess

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """Signs certificates into its folder; `ca` is its own."""

    def __init__(self, folder, name="test-ca"):
        self.folder = folder
        folder.mkdir(parents=True)
        self.ca = folder / "ca.pem"
        self._openssl("req", "-x509", *CURVE, "-keyout", "ca.key", "-out", "ca.pem", "-subj", f"/CN={name}")

    def issue(self, common_name, *, file=None, alternative="IP:127.0.0.1", days=2):
        """Return the files of a new certificate and its key; -1 day makes one that has expired."""
        file = file or common_name
        (self.folder / "ext").write_text(f"subjectAltName={alternative}\n")
        self._openssl("req", *CURVE, "-keyout", f"{file}.key", "-out", "request", "-subj", f"/CN={common_name}")
        signer = ("-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        self._openssl("x509", "-req", *signer, "-out", f"{file}.pem", "-extfile", "ext", "-days", str(days))
        return self.folder / f"{file}.pem", self.folder / f"{file}.key"

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60)


def mosquitto_tls(authority, certificate, *, ask=False):
    """Lines of mosquitto.conf for its listener: TLS, with `ask` for those alone whom the authority has signed."""
    cert, key = certificate
    lines = f"certfile {cert}\nkeyfile {key}\n"
    if ask:
        lines += f"cafile {authority.ca}\nrequire_certificate true\nuse_identity_as_username true\n"
    return lines
