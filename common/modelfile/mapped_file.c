#include "common/modelfile/mapped_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/mem.h"

struct mapped_file {
    uint8_t *data;
    size_t size;
};

enum err_code mapped_file_open(const char *path, struct mapped_file **out, struct err *why)
{
    struct mapped_file *f = mem_zalloc(sizeof *f);
    if (f == NULL) return err_nomem(why, "a mapped file");
    enum err_code rc = ERR_OK;
    /* O_NONBLOCK: a named pipe in the folder must not hang us; it has no effect on regular files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        rc = errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND : ERR_IO;
        rc = err_set(why, rc, "%s: %s", path, strerror(errno));
        goto out;
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = err_set(why, ERR_IO, "%s: not a regular file", path);
        goto out;
    }
    f->size = (size_t)st.st_size;
    if (f->size > 0) {
        void *p = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = errno == ENOMEM ? ERR_EXHAUSTED : ERR_IO;
            rc = err_set(why, rc, "%s: cannot map %zu bytes: %s", path, f->size, strerror(errno));
            goto out;
        }
        f->data = p;
    }
out:
    if (fd >= 0) close(fd); /* the mapping keeps the file */
    if (rc == ERR_OK)
        *out = f;
    else
        mapped_file_close(f);
    return rc;
}

void mapped_file_close(struct mapped_file *f)
{
    if (f == NULL) return;
    if (f->data != NULL) munmap(f->data, f->size);
    mem_free(f);
}

const uint8_t *mapped_file_data(const struct mapped_file *f)
{
    return f->data;
}

size_t mapped_file_size(const struct mapped_file *f)
{
    return f->size;
}

void mapped_file_drop(const struct mapped_file *f, size_t off, size_t n)
{
    assert(off <= f->size && n <= f->size - off);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t end = off + n;
    /* Inward: a page shared with a neighbour may still be wanted. The file's last page has no neighbour behind. */
    size_t last = end == f->size ? end : end / page * page;
    size_t first = (off + page - 1) / page * page;
    if (first < last) (void)madvise(f->data + first, last - first, MADV_DONTNEED);
}
