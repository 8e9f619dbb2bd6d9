/* The part of ONNX Runtime's C interface that the op needs: functions by their place in its table, which only ever grows,
 * and the struct that describes an op. The places are those of onnxruntime_c_api.h (API version 17, ONNX Runtime 1.17),
 * which the Python package does not ship; the names are ours. */
#ifndef MMSCCONV_INTERFACE_H
#define MMSCCONV_INTERFACE_H

#include <stddef.h>
#include <stdint.h>

#define API_VERSION 17
enum { FAIL = 1, INVALID_ARGUMENT = 2 };    /* codes of a status */
enum { FLOAT_TENSOR = 1 };                  /* an element type */
enum { REQUIRED = 0, OPTIONAL = 1 };        /* inputs */
enum { DEFAULT_MEMORY = 0, INTEGERS = 2 };  /* the memory of an input; the type of an attribute */

typedef struct Status Status;         /* NULL for success */
typedef struct Options Options;       /* of a session */
typedef struct Domain Domain;         /* of ops */
typedef struct Info Info;             /* of a node that a kernel is made for */
typedef struct Context Context;       /* of one run of a kernel */
typedef struct Inference Inference;   /* of shapes, before anything runs */
typedef struct Attribute Attribute;
typedef struct Value Value;
typedef struct TensorShape TensorShape;
typedef struct Op Op;

typedef struct {
    Status *(*new_status)(int code, const char *message); /* place 0 */
    void *places1[25];
    Status *(*new_domain)(const char *name, Domain **out); /* 26 */
    Status *(*add_op)(Domain *domain, const Op *op);
    Status *(*add_domain)(Options *options, Domain *domain);
    void *places29[22];
    Status *(*data_of)(Value *value, void **out); /* 51 */
    void *places52[5];
    Status *(*new_shape)(TensorShape **out); /* 57 */
    Status *(*set_element_type)(TensorShape *shape, int type);
    Status *(*set_dimensions)(TensorShape *shape, const int64_t *dimensions, size_t count);
    void *places60[1];
    Status *(*rank_of)(const TensorShape *shape, size_t *out); /* 61 */
    Status *(*dimensions_of)(const TensorShape *shape, int64_t *out, size_t count); /* -1: not known yet */
    Status *(*names_of)(const TensorShape *shape, const char **out, size_t count);
    Status *(*elements_of)(const TensorShape *shape, size_t *out);
    Status *(*shape_of)(const Value *value, TensorShape **out);
    void *places66[19];
    Status *(*get_float)(const Info *info, const char *name, float *out); /* 85 */
    Status *(*get_integer)(const Info *info, const char *name, int64_t *out);
    void *places87[1];
    Status *(*input_count)(const Context *context, size_t *out); /* 88 */
    void *places89[1];
    Status *(*input)(const Context *context, size_t index, const Value **out); /* 90; NULL if it is left out */
    Status *(*output)(Context *context, size_t index, const int64_t *dimensions, size_t count, Value **out);
    void *places92[7];
    void (*free_shape)(TensorShape *shape); /* 99 */
    void *places100[63];
    Status *(*get_integers)(const Info *info, const char *name, int64_t *out, size_t *count); /* 163 */
    void *places164[104];
    Status *(*input_shape)(const Inference *inference, size_t index, TensorShape **out); /* 268; not to be freed */
    Status *(*attribute)(const Inference *inference, const char *name, const Attribute **out);
    Status *(*set_output_shape)(const Inference *inference, size_t index, const TensorShape *shape);
    Status *(*set_names)(TensorShape *shape, const char **names, size_t count);
    Status *(*read_attribute)(const Attribute *attribute, int type, void *out, size_t bytes, size_t *written);
    void *places273[1];
    Status *(*parallel_for)(const Context *context, void (*task)(void *data, size_t index), size_t tasks,
                            size_t batches, void *data); /* 274; batches 0: as many as it has threads */
} Api;
_Static_assert(offsetof(Api, parallel_for) == 274 * sizeof(void *), "a place is missing");

typedef struct {
    const Api *(*api)(uint32_t version); /* NULL if this ONNX Runtime is older */
    const char *(*version)(void);
} ApiBase;

struct Op {
    uint32_t version;
    void *places1[1];
    const char *(*name)(const Op *op);
    const char *(*provider)(const Op *op); /* NULL: the CPU */
    int (*input_type)(const Op *op, size_t index);
    size_t (*inputs)(const Op *op);
    int (*output_type)(const Op *op, size_t index);
    size_t (*outputs)(const Op *op);
    void *places8[1];
    void (*destroy)(void *kernel);
    int (*input_kind)(const Op *op, size_t index); /* REQUIRED or OPTIONAL */
    int (*output_kind)(const Op *op, size_t index);
    int (*input_memory)(const Op *op, size_t index);
    void *places13[4]; /* of ops with any number of inputs or outputs */
    Status *(*create)(const Op *op, const Api *api, const Info *info, void **kernel);
    Status *(*compute)(void *kernel, Context *context);
    Status *(*infer_shape)(const Op *op, Inference *inference);
    int (*since_version)(const Op *op); /* of the op's domain */
    int (*until_version)(const Op *op);
};

#endif
