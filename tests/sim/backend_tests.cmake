# The wrappers of the vendor's libraries, linked with their doubles.
set(backend ${CMAKE_SOURCE_DIR}/worker/backend/cuda)
set(kernels norm layernorm column_sums pixel attention elem loss flat reorder)
list(TRANSFORM kernels REPLACE "(.+)" "${backend}/\\1.cu")
bf_sim_kernels(bf_cuda_sim_kernels ${kernels})
target_compile_options(bf_cuda_sim_kernels PRIVATE -Wno-maybe-uninitialized) # under a sanitizer g++ sees what is not
file(GLOB host_files ${backend}/*.c)
add_library(bf_cuda_sim STATIC ${host_files})
target_link_libraries(bf_cuda_sim PUBLIC bf_engine bf_common bf_cuda_sim_kernels bf_cusim)
add_library(bf_comm_nccl_sim STATIC ${CMAKE_SOURCE_DIR}/worker/comm/comm_nccl.c)
target_link_libraries(bf_comm_nccl_sim PUBLIC bf_comm bf_engine bf_common bf_cusim)
target_compile_definitions(bf_comm_nccl_sim PUBLIC BF_SIM=1)

# bf_sim_test(NAME LIBS…): once as it is, and once with operations begun in an order drawn at random.
function(bf_sim_test name)
  bf_test(${name} ${ARGN})
  add_test(NAME ${name}_random COMMAND ${name})
  set_tests_properties(${name}_random PROPERTIES TIMEOUT 300
    ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=passive;CUSIM_SEED=1")
endfunction()

bf_sim_test(test_cuda_dnn bf_cuda_sim)
bf_sim_test(test_cuda_tuning bf_cuda_sim)
bf_sim_test(test_cuda_blas bf_cuda_sim)
bf_sim_test(test_backend_parity bf_cuda_sim bf_ops_harness)

add_executable(test_comm_nccl test_comm_nccl.c)
target_link_libraries(test_comm_nccl PRIVATE bf_comm_nccl_sim PkgConfig::CMOCKA MPI::MPI_C m)
foreach(ranks 1 2 3 4)
  add_test(NAME test_comm_nccl_${ranks}
           COMMAND mpirun --oversubscribe --bind-to none -n ${ranks} $<TARGET_FILE:test_comm_nccl>)
  set_tests_properties(test_comm_nccl_${ranks} PROPERTIES TIMEOUT 300 PROCESSORS 2 ENVIRONMENT "${sim_environment}")
endforeach()

# The whole worker, with GPUs that are simulated.
set(worker ${CMAKE_SOURCE_DIR}/worker)
add_executable(batchformer-worker-sim ${worker}/main.c ${worker}/options.c ${worker}/device.c ${worker}/gpu_module.c
  gpu_linked.c)
target_link_libraries(batchformer-worker-sim PRIVATE bf_tasks bf_train bf_cpu bf_cuda_sim bf_comm_nccl_sim bf_comm
  bf_proto MPI::MPI_C)
set_target_properties(batchformer-worker-sim PROPERTIES LINKER_LANGUAGE CXX)

# Rank 1 loses its peer in its first operation; the other tests use communicators of their own.
add_test(NAME test_comm_nccl_peer_gone
         COMMAND mpirun --oversubscribe --bind-to none -n 2 $<TARGET_FILE:test_comm_nccl>)
set_tests_properties(test_comm_nccl_peer_gone PROPERTIES TIMEOUT 300 PROCESSORS 2
  ENVIRONMENT "${sim_environment};NCCLSIM_FAIL=1:1")

# bench/gpu_ops.c, on shapes that say nothing about speed.
add_executable(gpu_ops_sim ${CMAKE_SOURCE_DIR}/bench/gpu_ops.c ${CMAKE_SOURCE_DIR}/bench/bench_net.c
  ${CMAKE_SOURCE_DIR}/bench/bench_args.c)
target_link_libraries(gpu_ops_sim PRIVATE bf_nn bf_cuda_sim bf_comm_nccl_sim bf_comm bf_engine MPI::MPI_C
  PkgConfig::CJSON m)
set_target_properties(gpu_ops_sim PROPERTIES LINKER_LANGUAGE CXX)
foreach(precision fp32 bf16)
  add_test(NAME sim_gpu_ops_${precision}
           COMMAND gpu_ops_sim --arch resnet50 --width 0.125 --batch 4 --size 32 --classes 8 --repeats 1
                   --precision ${precision} --peak-mib 1 --peak-n 64)
  set_tests_properties(sim_gpu_ops_${precision} PROPERTIES TIMEOUT 300 ENVIRONMENT "${sim_environment}"
    PASS_REGULAR_EXPRESSION "attention.* backward")
endforeach()
