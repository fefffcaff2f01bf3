#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/mem.h"

enum err_code file_read(const char *path, size_t max_bytes, char **out, size_t *len,
                        struct err *why)
{
    enum err_code rc = ERR_OK;
    struct buf b = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        rc = errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO;
        return err_set(why, rc, "%s: %s", path, strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = err_set(why, ERR_IO, "%s: not a regular file", path);
        goto out;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        rc = err_set(why, ERR_TOO_LARGE, "%s: %lld bytes, the limit is %zu", path,
                     (long long)st.st_size, max_bytes);
        goto out;
    }
    char chunk[1 << 16];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            rc = err_set(why, ERR_IO, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0) break;
        if (b.len + (size_t)n > max_bytes) { /* it grew while we read */
            rc = err_set(why, ERR_TOO_LARGE, "%s: more than %zu bytes", path, max_bytes);
            goto out;
        }
        buf_append(&b, chunk, (size_t)n);
    }
    *out = buf_take(&b, len);
    if (*out == NULL) rc = err_nomem(why, path);
out:
    buf_free(&b);
    close(fd);
    return rc;
}

enum err_code file_replace(const char *path, const char *bytes, size_t n, struct err *why)
{
    char tmp[4096];
    int len = snprintf(tmp, sizeof tmp, "%s.tmp.%d", path, (int)getpid());
    if (len < 0 || (size_t)len >= sizeof tmp)
        return err_set(why, ERR_INVALID, "%s: path too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return err_set(why, ERR_IO, "%s: %s", tmp, strerror(errno));
    bool ok = true;
    for (size_t done = 0; done < n && ok;) {
        ssize_t w = write(fd, bytes + done, n - done);
        if (w < 0 && errno != EINTR) ok = false;
        if (w > 0) done += (size_t)w;
    }
    int saved = errno;
    if (close(fd) != 0 && ok) {
        ok = false;
        saved = errno;
    }
    if (ok && rename(tmp, path) != 0) {
        ok = false;
        saved = errno;
    }
    if (ok) return ERR_OK;
    unlink(tmp);
    return err_set(why, ERR_IO, "%s: %s", path, strerror(saved));
}
